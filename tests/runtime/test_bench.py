"""`shoal bench` counts what it says it counts; how fast anything is, no test says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.runtime import bench as measure
from shoal.runtime.bench_cli import bench
from shoal.runtime.config import EngineOptions
from shoal.runtime.engine import MAX_PREFILL_BESIDE_DECODE, Engine
from shoal.runtime.loading import load_engine


@pytest.fixture(scope="module")
def engine(native_checkpoint: Path, native_home: Path) -> Engine:
    options = EngineOptions(parallel=4, context=512, threads=1, max_batched_tokens=64)
    return load_engine(native_checkpoint, options, home=native_home).engine


@pytest.mark.parametrize("depth", [0, 1, 64, 70])
def test_prefill_counts_what_comes_after_the_depth(engine: Engine, depth: int) -> None:
    sample = measure.prefill(engine, 150, depth, seed=1)
    assert sample.num_tokens == 150
    assert sample.seconds > 0
    assert not engine.has_work


@pytest.mark.parametrize(("depth", "parallel"), [(0, 1), (100, 1), (100, 3), (3, 4)])
def test_decode_counts_steps_in_which_all_draw(engine: Engine, depth: int, parallel: int) -> None:
    assert measure.decode_room(20, depth, parallel, MAX_PREFILL_BESIDE_DECODE) <= 512
    sample = measure.decode(engine, 20, depth, parallel, seed=1)
    assert sample.num_tokens == 20 * parallel
    assert not engine.has_work
    engine.check_books()


def test_one_json_object(native_checkpoint: Path, native_home: Path) -> None:
    arguments = [
        native_checkpoint,
        "--prompt",
        "40",
        "--gen",
        "8",
        "--depth",
        "16",
        "--parallel",
        "2",
        "--format",
        "int4",
    ]
    done = CliRunner().invoke(
        bench,
        [str(word) for word in (*arguments, "--repetitions", "3", "--json")],
        env={"SHOAL_HOME": str(native_home)},
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["backend"], report["format"], report["parallel"], report["depth"]) == ("cpu", "int4", 2, 16)
    assert report["prefill"]["num_tokens"] == 40
    assert report["decode"]["num_tokens"] == 16
    for part in (report["prefill"], report["decode"]):
        assert len(part["samples"]) == 3
        speeds = sorted(sample["tokens_per_s"] for sample in part["samples"])
        assert part["tokens_per_s"] == pytest.approx(speeds[1], rel=1e-3)
    assert {"at", "machine", "versions", "commit", "isa", "threads", "load_s", "host_s_per_step"} <= set(report)


def test_wrong_usage(native_checkpoint: Path) -> None:
    done = CliRunner().invoke(bench, [str(native_checkpoint), "--prompt", "0", "--gen", "0"])
    assert done.exit_code == 2
