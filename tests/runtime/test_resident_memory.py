"""What an engine's process holds against what was planned for it, for the published sizes.

The weights are a converted file of the right shapes whose data is one hole: no disk, no conversion, and once it is mapped its pages
of zeros are as resident as any. An engine process maps it, answers, and is given the time in which its pools become present. Then the
system's own count of it, VmRSS, is compared with the plan's total: anonymous memory (pools, interpreter, tokenizer) and the pages of
mapped files, the weights' and the libraries' alike, though other processes may share them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from shoal.runtime import wire
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.container import CONTAINER_FILE, FORMAT_VERSION, encode_header, header_room
from shoal.runtime.container_tensors import container_tensors
from shoal.runtime.plan import MemoryPlan, plan_memory
from shoal.runtime.sizes import published_config
from shoal.runtime.synth import with_token_ids, write_side_files
from shoal.runtime.synth_tokenizer import make_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

MIB = 1 << 20
PARALLEL = 2
TOLERANCE_RATIO, TOLERANCE_BYTES = 0.03, 64 * MIB
"""The larger of both is allowed."""
MARGIN_BYTES = 1024 * MIB
"""What the machine must have available beyond the plan."""
RESIDENT = re.compile(r"^(Rss\w+):\s+(\d+) kB$", re.MULTILINE)
WEIGHTS = re.compile(r"/model\.safetensors\nSize:\s+(\d+) kB\n(?:\w+:.*\n)*?Rss:\s+(\d+) kB")
QUIET_S = 2.0
"""Pools become present when no processor has anything else to do; without growth for so long, they are."""
PRESENT_WITHIN_S = 300.0


@dataclass(frozen=True)
class Held:
    """Bytes of a process by kind, as the system counts them; of mapped weights their length: a system that is short of memory, or that
    looks for pages at rest, takes some back for a while, which is not ours to plan."""

    anonymous: int
    files: int

    @property
    def total(self) -> int:
        return self.anonymous + self.files


def held_by(pid: int) -> Held:
    process = Path(f"/proc/{pid}")
    kib = {name: int(value) for name, value in RESIDENT.findall((process / "status").read_text(encoding="ascii"))}
    files = kib["RssFile"] + kib["RssShmem"]
    for size, resident in WEIGHTS.findall((process / "smaps").read_text(encoding="utf-8")):
        files += int(size) - int(resident)
    return Held(kib["RssAnon"] * 1024, files * 1024)


def available_bytes() -> int:
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    (kib,) = re.findall(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(kib) * 1024


def write_hollow(directory: Path, size: str, weight_format: str) -> ModelConfig:
    """A converted model whose tensors are a hole in the file."""
    content = published_config(size)
    config = ModelConfig.from_mapping(content)
    tokenizer = make_tokenizer(config.vocab_size, config.max_position_embeddings)
    write_side_files(directory, with_token_ids(content, tokenizer), tokenizer, small_template=True)
    metadata = {"format_version": FORMAT_VERSION, "format": weight_format, "quantisation": "{}", "source_digest": "0"}
    specs = container_tensors(config, weight_format)
    room = end = header_room(specs, metadata)
    entries = {}
    for name, spec in specs.items():
        place = {"offset": end, "num_bytes": spec.num_bytes, "sha256": "0" * 64}
        entries[name] = {"layout": spec.layout, "rows": spec.rows, "cols": spec.cols, **place}
        end += spec.num_bytes
    with (directory / CONTAINER_FILE).open("wb") as file:
        file.write(encode_header(entries, metadata, room))
        file.truncate(end)
    return config


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    # Its pages would stay in the system's cache, and the folder outlives the test.
    (tmp_path / CONTAINER_FILE).unlink(missing_ok=True)


class EngineProcess:
    """An engine, asked one thing after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "shoal.runtime"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send(self, *messages: wire.ToEngine) -> None:
        pipe = self._pipe(self._process.stdin)
        pipe.write(b"".join(map(wire.encode_frame, messages)))
        pipe.flush()

    def next(self) -> wire.FromEngine:
        pipe = self._pipe(self._process.stdout)
        prefix = pipe.read(4)
        assert len(prefix) == 4, f"the engine ended with {self._process.wait()}"
        return wire.from_engine_decoder.decode(pipe.read(wire.frame_length(prefix)))

    def finish_all(self, num_requests: int) -> None:
        """Read until so many answers are whole."""
        while num_requests:
            frame = self.next()
            finished = [o.finish for o in frame.outputs if o.finish] if isinstance(frame, wire.OutputBatch) else []
            assert all(finish.reason is wire.FinishReason.LENGTH for finish in finished), finished
            num_requests -= len(finished)

    def once_present(self) -> Held:
        """What it holds when that grows no more."""
        held, since, deadline = held_by(self.pid), time.monotonic(), time.monotonic() + PRESENT_WITHIN_S
        while time.monotonic() - since < QUIET_S:
            assert time.monotonic() < deadline, f"still growing at {held}"
            time.sleep(0.1)
            now = held_by(self.pid)
            if now.total > held.total + MIB // 4:
                since = time.monotonic()
            held = now
        return held

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def measure(directory: Path, options: dict[str, object]) -> tuple[wire.Ready, Held]:
    """Facts that the engine tells, and what it holds after answers with everything in them that a step can be asked for."""
    with EngineProcess() as engine:
        engine.send(wire.Configure(model_dir=str(directory), served_name="hollow", options=options))
        ready = engine.next()
        assert isinstance(ready, wire.Ready), ready
        prompt, greedy = wire.TextPrompt(text="x" * 40), wire.Sampling(temperature=0.0)
        for name, wanted in (("best", {}), ("whole rows", {"logprobs": 2, "echo": True})):
            requests = [
                wire.Request(
                    request_id=f"{name} {i}", prompt=prompt, sampling=greedy, max_tokens=2, ignore_eos=True, **wanted
                )
                for i in range(PARALLEL)
            ]
            engine.send(*requests)
            engine.finish_all(PARALLEL)
        return ready, engine.once_present()


@pytest.mark.parametrize("context", [4096, 32768])
@pytest.mark.parametrize("weight_format", ["int4", "int8"])
@pytest.mark.parametrize("size", ["0.8B", "2B", "4B", "9B"])
def test_a_process_holds_what_was_planned(directory: Path, size: str, weight_format: str, context: int) -> None:
    config = write_hollow(directory, size, weight_format)
    options = {"context": context, "parallel": PARALLEL, "threads": min(2, len(os.sched_getaffinity(0)))}
    plan = plan_memory(config, EngineOptions(**options), stored_format=weight_format)
    if available_bytes() < plan.total_bytes + MARGIN_BYTES:
        pytest.skip(f"needs {plan.total_bytes // MIB:,} MiB, {available_bytes() // MIB:,} are available")
    ready, held = measure(directory, options)
    print(f"\n{size} {weight_format} {context:>5}: {table_row(plan, held)}", end=" ")
    assert ready.planned_bytes == plan.by_pool()
    allocated = {pool: size for pool, size in plan.by_pool().items() if pool in ready.allocated_bytes}
    assert ready.allocated_bytes == allocated and plan.by_pool().keys() - allocated.keys() == {"conv", "host"}
    allowed = max(TOLERANCE_BYTES, TOLERANCE_RATIO * plan.total_bytes)
    assert abs(held.total - plan.total_bytes) <= allowed, f"{held} where {plan.by_pool()} was planned"


def table_row(plan: MemoryPlan, held: Held) -> str:
    """MiB of the plan and of the process, and by how much they differ."""
    differs = held.total - plan.total_bytes
    parts = f"{held.anonymous / MIB:,.1f} anonymous + {held.files / MIB:,.1f} of files"
    share = f"{differs / MIB:+.1f} MiB, {100 * differs / plan.total_bytes:+.2f} %"
    return f"planned {plan.total_bytes / MIB:,.1f} MiB, resident {held.total / MIB:,.1f} ({parts}): {share}"
