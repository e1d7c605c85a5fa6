"""The tensors of GGUF files, what a token costs, and what contestants print."""

import sys
from pathlib import Path

import numpy as np
import pytest
from cells import PEER_TYPES, Cell
from contestants import contestants, llama_values, repetitions, shoal_measurements
from gguf_blocks import FORMATS, STD, random_rows
from process import ContestantFailed, run
from report import ROOT
from work import state_bytes, work_of

from shoal.runtime.config import ModelConfig
from shoal.runtime.sizes import published_config

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (3, 1024), (16, 3584)])
def test_rows_have_the_bytes_of_their_format(name, rows, columns):
    format = FORMATS[name]
    out = random_rows(format, rows, columns, RNG)
    assert out.shape == (rows, format.row_bytes(columns)) and out.dtype == np.uint8


def test_bits_a_weight():
    bits = {name: 8 * format.row_bytes(4096) / 4096 for name, format in FORMATS.items()}
    assert bits == {
        "F32": 32,
        "BF16": 16,
        "Q4_0": 4.5,
        "Q8_0": 8.5,
        "Q6_K": 6.5625,
        "IQ5_K": 5.5,
        "IQ4_KS": 4.25 + 32 / 4096,
    }


def test_columns_must_be_whole_blocks():
    with pytest.raises(ValueError, match="whole blocks"):
        FORMATS["Q4_0"].row_bytes(48)


def test_random_weights_have_a_plausible_size():
    q4 = random_rows(FORMATS["Q4_0"], 64, 1024, RNG).reshape(-1, 18)
    scale = q4[:, :2].copy().view(np.float16).astype(np.float32)
    values = np.concatenate([(q4[:, 2:] & 15), (q4[:, 2:] >> 4)], axis=1).astype(np.float32) - 8
    assert abs((values * scale).std() / STD - 1) < 0.1
    bf16 = random_rows(FORMATS["BF16"], 64, 1024, RNG).view(np.uint16).astype(np.uint32) << 16
    assert 0.005 < np.abs(bf16.view(np.float32)).max() < 0.05


def test_a_token_costs_what_the_design_says():
    small, large = (ModelConfig.from_mapping(published_config(size)) for size in ("0.8B", "4B"))
    assert 425e6 < work_of(small, "int4", 0).token_bytes < 435e6
    assert 2.32e9 < work_of(large, "int4", 0).token_bytes < 2.35e9
    assert work_of(small, "int4", 4096).token_bytes - work_of(small, "int4", 0).token_bytes == 4096 * 12288
    assert 0.99e9 < work_of(small, "int4", 0).token_operations < 1.01e9
    assert 22e6 < state_bytes(small) < 26e6


def test_llama_bench_prints_logs_before_its_json():
    output = 'load_backend: [cpu]\n[\n {"samples_ts": [1.0]},\n {"samples_ts": [50.5, 51.5]}\n]\n'
    assert llama_values(output) == (50.5, 51.5)
    with pytest.raises(ContestantFailed):
        llama_values("error: no model")


def test_each_repetition_of_ours_brings_its_switches_and_its_limit():
    output = """[{"tokens_per_s": 9.0, "seconds": 1.0, "involuntary_switches": 300, "limit_per_s": 3e10},
        {"tokens_per_s": 10.0, "seconds": 1.0, "involuntary_switches": 0, "limit_per_s": 4e10}]"""
    assert [(one.values, one.disturbed, one.limit_per_s) for one in shoal_measurements(output)] == [
        ((9.0,), True, 3e10),
        ((10.0,), False, 4e10),
    ]


def test_our_repetitions_stand_between_limits():
    command = [
        sys.executable,
        str(Path(__file__).with_name("run_shoal.py")),
        str(ROOT / "models" / "pocket"),
        "--threads",
        "1",
    ]
    for amount in (["--gen", "4"], ["--prompt", "20"]):
        measurements = shoal_measurements(run([*command, *amount, "--repetitions", "2"]).output)
        assert len(measurements) == 2
        assert all(one.values[0] > 0 and one.limit_per_s > 1e8 for one in measurements)


def test_absent_peers_are_named():
    found, missing = contestants(Cell("0.8B", "int4", "decode", 0, 2), {})
    assert found[0].name == "shoal"
    assert any("SHOAL_BENCH_IK" in line for line in missing)
    found, missing = contestants(
        Cell("0.8B", "int4", "decode", 0, 2), {"SHOAL_BENCH_LLAMA": "/l", "SHOAL_BENCH_IK": "/i"}
    )
    assert [one.name for one in found] == ["shoal", "llama.cpp", "ik_llama.cpp"] and not missing
    assert all(
        type_name in FORMATS for types in PEER_TYPES.values() for type_name in types.values() if type_name != "bf16"
    )


def test_long_repetitions_are_few():
    assert repetitions(Cell("0.8B", "int4", "decode", 0, 2)) == 3
    assert (
        repetitions(Cell("0.8B", "int4", "prefill", 2048, 2)) == repetitions(Cell("4B", "int4", "prefill", 512, 2)) == 1
    )


def test_a_process_is_measured_and_its_failure_is_told():
    done = run(["sh", "-c", "sleep 0.05; echo yes"])
    assert done.output == "yes\n" and done.seconds >= 0.05 and done.resident_bytes > 0
    with pytest.raises(ContestantFailed, match="3: no such model"):
        run(["sh", "-c", "echo no such model >&2; exit 3"])
