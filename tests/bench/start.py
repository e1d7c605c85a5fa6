"""Times what stands before a first token, beside what no program of Python's can do without, and writes JSON.

    python tests/bench/start.py [--sizes 0.8B 4B | --models DIR ...] [--format int4] [--threads N] [--rounds N] [--out FILE]

python        a bare interpreter, from the command to its end
mapping       the same, and the weights' file mapped with all its pages present
first_token   `shoal generate` of 16 ids to one id, its end included
engine_ready  an engine's process as the agent starts it, from the command to its Ready frame
engine_load   the part of it that the engine calls load_s, as `shoal bench` does

Seconds. They take turns within a round, after one that is not counted: files are in the page cache by then, bytecode is compiled, and
digests of files are known. The median over the rounds counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import model_files
import process
import report

from shoal.runtime import wire
from shoal.runtime.container import CONTAINER_FILE

PROMPT = list(range(100, 116))
MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0), prot=mmap.PROT_READ)
"""


class EngineNotReady(Exception):
    """The engine's process ended, or could not load; the message is what it said."""


def engine_seconds(model: Path, threads: int) -> tuple[float, float]:
    """(from the command to the Ready frame, load_s in it). Raises EngineNotReady."""
    configure = wire.Configure(
        model_dir=str(model), served_name=model.name, options={"backend": "cpu", "threads": threads}
    )
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "shoal.runtime"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        child.stdin.write(wire.encode_frame(configure))
        child.stdin.flush()
        prefix = child.stdout.read(4)
        if len(prefix) < 4:
            raise EngineNotReady(f"the engine ended with {child.wait()}")
        frame = wire.from_engine_decoder.decode(child.stdout.read(wire.frame_length(prefix)))
        seconds = time.perf_counter() - start
    finally:
        child.stdin.close()  # which ends it
        child.stdout.close()
        child.wait()
    if not isinstance(frame, wire.Ready):
        raise EngineNotReady(str(frame))
    return seconds, frame.load_s


def measure(model: Path, ids: Path, threads: int) -> dict[str, float]:
    """One round. Raises process.ContestantFailed, EngineNotReady."""
    generate = [model_files.shoal(), "generate", str(model), "--ids", str(ids), "--max-tokens", "1"]
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "mapping": [sys.executable, "-c", MAP, str(model / CONTAINER_FILE)],
        "first_token": [*generate, "--backend", "cpu", "--threads", str(threads)],
    }
    seconds = {name: process.run(command).seconds for name, command in commands.items()}
    seconds["engine_ready"], seconds["engine_load"] = engine_seconds(model, threads)
    return seconds


def main():
    parser = argparse.ArgumentParser(description="time to the first token, of a process that has to start")
    parser.add_argument("--sizes", nargs="+", default=["0.8B"], help="of models of random weights")
    parser.add_argument("--models", nargs="+", type=Path, help="directories of converted models, instead of sizes")
    parser.add_argument("--format", default="int4", choices=("int4", "int8", "bf16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: build/bench/start-<commit>.json")
    options = parser.parse_args()
    models = options.models or [model_files.shoal_directory(size, options.format) for size in options.sizes]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder) / "ids.json"
        ids.write_text(json.dumps(PROMPT))
        for model in models:
            measure(model, ids, options.threads)
            rounds = [measure(model, ids, options.threads) for _ in range(options.rounds)]
            samples = {name: [round(one[name], 4) for one in rounds] for name in rounds[0]}
            median = {name: round(statistics.median(values), 4) for name, values in samples.items()}
            results[model.name] = {"median_s": median, "samples_s": samples}
            print(f"{model.name}: {median}")
    header = report.header("start", "numpy")
    print(report.write(header | {"threads": options.threads, "rounds": options.rounds, "models": results}, options.out))


if __name__ == "__main__":
    main()
