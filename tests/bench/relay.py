"""What is left of the engine's own tokens a second behind agent, controller and client, on the same processors; writes JSON.

    python tests/bench/relay.py [--model DIR] [--rounds N] [--tokens N] [--threads N] [--out FILE]

`engine` steps in this process (the loop of `shoal bench`); `service` is `shoal up` with the same options, asked by this
process over HTTP, a thread a stream. They take turns, and medians count. Counted is what arrives while all streams flow:
from the last stream's first token to the first stream's last. Beside it stands what each process computed for a token.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import report

from shoal.runtime import bench
from shoal.runtime.config import EngineOptions
from shoal.runtime.loading import load_engine

STREAMS = (1, 4)
CONTEXT = 2048
PROMPT_TOKENS = 16
START_S = 300.0


@contextmanager
def service(model: Path, parallel: int, threads: int) -> Iterator[dict]:
    """What `shoal up` says of itself, while it is up."""
    with tempfile.TemporaryDirectory() as home:
        ready = Path(home) / "ready.json"
        command = [sys.executable, "-P", "-m", "shoal.deploy", "up", "--model", str(model), "--http", "127.0.0.1:0"]
        command += ["--grpc", "127.0.0.1:0", "--ready-file", str(ready), "--threads", str(threads)]
        command += ["--parallel", str(parallel), "--context", str(CONTEXT)]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + START_S
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the service did not start")
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(30)


def stream(address: str, num_tokens: int, seed: int) -> list[float]:
    """When each token of one answer came."""
    body = {
        "model": "auto", "prompt": [seed * 100 + i for i in range(PROMPT_TOKENS)], "max_tokens": num_tokens,
        "temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    came: list[float] = []
    while line := response.readline():
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices", [])
            came += [time.perf_counter()] * sum(len(choice.get("token_ids") or []) for choice in choices)
    connection.close()
    if len(came) != num_tokens:
        raise SystemExit(f"{len(came)} tokens came, not {num_tokens}: status {response.status}")
    return came


def served_tokens_per_s(address: str, num_tokens: int, num_streams: int) -> float:
    """Of all streams together, while all flow."""
    came: list[list[float]] = [[] for _ in range(num_streams)]

    def run(index: int) -> None:
        came[index] = stream(address, num_tokens, index + 1)

    streams = [threading.Thread(target=run, args=(index,)) for index in range(num_streams)]
    for one in streams:
        one.start()
    for one in streams:
        one.join()
    return tokens_per_s(came)


def tokens_per_s(came: list[list[float]]) -> float:
    """Of streams whose tokens came at these times, while all flow."""
    begin, end = max(times[0] for times in came), min(times[-1] for times in came)
    return sum(begin < at <= end for times in came for at in times) / (end - begin)


def processor_seconds(pid: int) -> float:
    """Of the threads that a process has. Linux only; 0 elsewhere."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(model: Path, num_streams: int, options: argparse.Namespace) -> dict:
    """Rounds of both, in turns."""
    own = load_engine(model, EngineOptions(threads=options.threads, parallel=num_streams, context=CONTEXT)).engine
    engine_rates: list[float] = []
    service_rates: list[float] = []
    with service(model, num_streams, options.threads) as ready:
        address = ready["http"].removeprefix("http://")
        agent = ready["agents"][0]
        pids = {"controller": ready["controllers"][0]["pid"], "agent": agent["pid"]}
        used = dict.fromkeys([*pids, "client"], 0.0)
        served_tokens_per_s(address, 32, num_streams)
        bench.decode(own, 32, PROMPT_TOKENS, num_streams, 0)
        for number in range(options.rounds):
            engine_rates.append(bench.decode(own, options.tokens, PROMPT_TOKENS, num_streams, number).tokens_per_s)
            before = {name: processor_seconds(pid) for name, pid in pids.items()}
            client_began = time.process_time()
            service_rates.append(served_tokens_per_s(address, options.tokens, num_streams))
            used["client"] += time.process_time() - client_began  # its threads have ended
            for name, pid in pids.items():
                used[name] += processor_seconds(pid) - before[name]
    num_tokens = options.rounds * options.tokens * num_streams
    engine_rate, service_rate = statistics.median(engine_rates), statistics.median(service_rates)
    return {
        "engine_tokens_per_s": round(engine_rate, 2),
        "service_tokens_per_s": round(service_rate, 2),
        "ratio": round(service_rate / engine_rate, 3),
        "ratio_of_rounds": round(statistics.median(s / e for s, e in zip(service_rates, engine_rates, strict=True)), 3),
        "engine_samples": [round(rate, 2) for rate in engine_rates],
        "service_samples": [round(rate, 2) for rate in service_rates],
        "processor_us_per_token": {name: round(1e6 * seconds / num_tokens) for name, seconds in used.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens a second through the service beside the engine's own")
    parser.add_argument("--model", type=Path, default=report.ROOT / "models" / "pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS)
    parser.add_argument("--out", type=Path, help="default: build/bench/relay-<commit>.json")
    options = parser.parse_args()
    found = {}
    for num_streams in options.streams:
        found[num_streams] = measure(options.model, num_streams, options)
        print(f"{num_streams} stream(s): {found[num_streams]}")
    settings = {"model": options.model.name, "threads": options.threads, "rounds": options.rounds}
    print(report.write(report.header("relay") | settings | {"tokens": options.tokens, "streams": found}, options.out))


if __name__ == "__main__":
    main()
