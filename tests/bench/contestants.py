"""Who is measured, and how each is asked for a cell's figure. Every measurement is a process of its own.

    SHOAL_BENCH_LLAMA          llama.cpp's llama-bench, built for this machine; without it an importable llama_cpp serves
    SHOAL_BENCH_LLAMA_AVX2     the same built without AVX-512, beside --isa avx2 and avxvnni
    SHOAL_BENCH_IK             ik_llama.cpp's llama-bench, built for this machine

Options may follow a binary's name ("/path/llama-bench -fa 1"); without any, each runs as it comes.

The first token's time is that of a whole process that loads the model, reads 16 tokens and computes one row of logits, its
end included: what someone waits who types a command. All files are in the page cache by then.
"""

import importlib.util
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import model_files
import process
from cells import BEST_ISA, IK, LLAMA, LLAMA_AVX2, PEER_TYPES, TRANSFORMERS, Cell, targets_of
from rows import SHOAL
from samples import Measurement

GENERATED = {"0.8B": 64, "2B": 48, "4B": 32, "9B": 16}
"""Tokens of a decode repetition: about a second."""
HERE = Path(__file__).parent


class Contestant(Protocol):
    name: str

    def prepare(self, cell: Cell) -> None:
        """Makes the files. Raises ModelMissing."""

    def measure(self, cell: Cell) -> list[Measurement]:
        """One, or one a repetition where the contestant counts switches itself. Raises ContestantFailed."""


def repetitions(cell: Cell) -> int:
    """Within one process: more where one is short."""
    heavy = (cell.metric != "decode" and cell.tokens > 512) or cell.tokens > 2048
    return 1 if heavy or (cell.size in ("4B", "9B") and cell.metric == "prefill") else 3


def whole(cell: Cell, done: process.Finished, values: tuple[float, ...] = ()) -> list[Measurement]:
    """A process as one measurement: of its seconds, of its memory, or of the repetitions that it printed."""
    if cell.metric == "first_token":
        values = (done.seconds,)
    elif cell.metric == "resident":
        values = (done.resident_bytes / 1e6,)
    return [Measurement(values, done.seconds, done.switches)]


@dataclass(frozen=True)
class LlamaBench:
    """A llama-bench binary. The two projects' differ in a few options."""

    name: str
    command: str
    fork: bool = False

    def prepare(self, cell: Cell) -> None:
        model_files.gguf_file(cell.size, PEER_TYPES[self.name][cell.format])

    def arguments(self, cell: Cell) -> list[str]:
        cold = ["-w", "0"] if self.fork else ["--no-warmup"]
        if cell.metric == "first_token":
            return ["-p", str(cell.tokens), "-n", "0", "-r", "1", *cold]
        if cell.metric == "prefill":
            again = [] if cell.tokens <= 512 or cell.size == "0.8B" else cold  # tens of seconds: the first is as good
            return ["-p", str(cell.tokens), "-n", "0", "-r", str(repetitions(cell)), *again]
        generated = GENERATED[cell.size]
        if cell.metric == "decode" and cell.tokens and self.fork:
            return ["-p", "0", "-n", "0", "-gp", f"{cell.tokens},{generated}", "-r", str(repetitions(cell))]
        depth = ["-d", str(cell.tokens)] if cell.metric == "decode" and cell.tokens else []
        return ["-p", "0", "-n", str(generated), *depth, "-r", str(repetitions(cell))]

    def measure(self, cell: Cell) -> list[Measurement]:
        model = model_files.gguf_file(cell.size, PEER_TYPES[self.name][cell.format])
        binary, *options = shlex.split(self.command)
        command = [binary, *options, "-m", str(model), "-t", str(cell.threads), "-o", "json", *self.arguments(cell)]
        libraries = {"LD_LIBRARY_PATH": str(Path(binary).resolve().parent)}
        done = process.run(command, libraries)
        return whole(cell, done, llama_values(done.output))


def llama_values(output: str) -> tuple[float, ...]:
    """Tokens a second of every repetition of the last test that llama-bench printed; log lines may stand before."""
    begin = re.search(r"^\[\s*$", output, re.MULTILINE)
    if begin is None:
        raise process.ContestantFailed(f"llama-bench printed no JSON: {output[-200:]!r}")
    return tuple(float(value) for value in json.loads(output[begin.start() :])[-1]["samples_ts"])


@dataclass(frozen=True)
class Script:
    """A peer that is a Python package: a script beside this one loads it and prints samples as JSON."""

    name: str
    script: str

    def model(self, cell: Cell) -> Path:
        if self.name == TRANSFORMERS:
            return model_files.shoal_directory(cell.size, "bf16")
        return model_files.gguf_file(cell.size, PEER_TYPES[self.name][cell.format])

    def prepare(self, cell: Cell) -> None:
        self.model(cell)

    def measure(self, cell: Cell) -> list[Measurement]:
        prompt = cell.tokens if cell.metric in ("prefill", "first_token") else 0
        depth = cell.tokens if cell.metric == "decode" else 0
        generate = GENERATED[cell.size] if cell.metric in ("decode", "resident") else 0
        command = [
            sys.executable, str(HERE / self.script), str(self.model(cell)), "--threads", str(cell.threads),
            "--prompt", str(prompt), "--depth", str(depth), "--gen", str(generate),
            "--repetitions", "0" if cell.metric == "first_token" else str(repetitions(cell)),
        ]  # fmt: skip
        done = process.run(command, {"OMP_NUM_THREADS": str(cell.threads)})
        return whole(cell, done, tuple(json.loads(done.output)["samples_ts"]))


@dataclass(frozen=True)
class Shoal:
    """Ours; `isa` instead of the cell's where it stands beside itself."""

    name: str = SHOAL
    isa: str | None = None

    def prepare(self, cell: Cell) -> None:
        model_files.shoal_directory(cell.size, cell.format)

    def measure(self, cell: Cell) -> list[Measurement]:
        model = str(model_files.shoal_directory(cell.size, cell.format))
        engine = ["--backend", "cpu", "--threads", str(cell.threads), "--isa", self.isa or cell.isa]
        if cell.metric == "first_token":
            with tempfile.NamedTemporaryFile("w", suffix=".json") as ids:
                json.dump(list(range(100, 100 + cell.tokens)), ids)
                ids.flush()
                command = ["generate", model, "--ids", ids.name, "--max-tokens", "1", *engine]
                return whole(cell, process.run([model_files.shoal(), *command]))
        if cell.metric == "resident":
            amounts = ["--prompt", "0", "--gen", str(GENERATED[cell.size]), "--repetitions", str(repetitions(cell))]
            return whole(cell, process.run([model_files.shoal(), "bench", model, *amounts, *engine, "--json"]))
        if cell.metric == "prefill":
            amounts = ["--prompt", str(cell.tokens)]
        else:
            amounts = ["--gen", str(GENERATED[cell.size]), "--depth", str(cell.tokens)]
        command = [
            sys.executable, str(HERE / "run_shoal.py"), model, *amounts, "--repetitions", str(repetitions(cell)),
            "--threads", str(cell.threads), "--isa", self.isa or cell.isa,
        ]  # fmt: skip
        return shoal_measurements(process.run(command).output)


def shoal_measurements(output: str) -> list[Measurement]:
    """Each repetition with its own seconds, switches and limit."""
    return [
        Measurement((one["tokens_per_s"],), one["seconds"], one["involuntary_switches"], one["limit_per_s"])
        for one in json.loads(output)
    ]


def contestants(cell: Cell, environment: Mapping[str, str] = os.environ) -> tuple[list[Contestant], list[str]]:
    """(who takes part in a cell: whoever its targets name, who of them is missing and why)."""
    found: list[Contestant] = [Shoal()]
    missing = []
    wanted = {target.against for target in targets_of(cell)}
    if BEST_ISA in wanted:
        found.append(Shoal(BEST_ISA, "auto"))
    for name, variable in (
        (LLAMA, "SHOAL_BENCH_LLAMA"),
        (LLAMA_AVX2, "SHOAL_BENCH_LLAMA_AVX2"),
        (IK, "SHOAL_BENCH_IK"),
    ):
        if name not in wanted:
            continue
        if command := environment.get(variable):
            found.append(LlamaBench(name, command, fork=name == IK))
        elif name == LLAMA and importlib.util.find_spec("llama_cpp"):
            found.append(Script(LLAMA, "run_llama_cpp.py"))
        else:
            missing.append(
                f"{name}: {variable} is not set" + (" and llama_cpp cannot be imported" if name == LLAMA else "")
            )
    if TRANSFORMERS in wanted:
        found.append(Script(TRANSFORMERS, "run_transformers.py"))
    return found, missing
