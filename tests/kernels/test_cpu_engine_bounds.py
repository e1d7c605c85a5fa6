"""What an engine takes in memory, and what it refuses: shapes, weights, steps."""

import numpy as np
import pytest
from shoal_test_tiny_models import assert_same_bits, ids_of, int32, run

from shoal.kernels.cpu.engine import (
    ATTENTION,
    DELTA,
    Engine,
    Step,
    TopRequest,
    UnsupportedIsa,
    UnsupportedShape,
    check_shape,
    expected_tensors,
    pool_bytes,
)

FORMATS = ("bf16", "int8", "int4")


@pytest.mark.parametrize("weight_format", FORMATS)
def test_planned_bytes_are_allocated_bytes(models, weight_format):
    for seed in range(3):
        model = models(weight_format, seed)
        for kv_format, threads in (("bf16", 1), ("int8", 3)):
            engine = model.engine(kv_format=kv_format, threads=threads)
            planned = pool_bytes(model.shape, engine.sizes, weight_format)
            allocated = engine.pool_bytes
            assert {k: planned[k] for k in ("kv", "state", "activations")} == {
                k: allocated[k] for k in ("kv", "state", "activations")
            }
            assert planned["weights"] == len(model.buffer)


def test_expected_tensors_are_those_of_the_file(models):
    for weight_format in FORMATS:
        model = models(weight_format, 1)
        expected = {t.name: (t.layout, t.rows * t.cols) for t in expected_tensors(model.shape, weight_format)}
        assert expected == {t.name: (t.layout, t.rows * t.cols) for t in model.tensors} | {
            name: (layout, size) for name, (layout, size) in expected.items() if name.endswith("gate_up")
        }


def test_weights_from_a_file(models, tmp_path):
    model = models("int4", 0)
    path = tmp_path / "weights"
    path.write_bytes(model.buffer.tobytes())
    ids = ids_of(model, 9)
    engine = model.engine()
    mapped = Engine(model.shape, engine.sizes, path, model.tensors)
    assert_same_bits([run(mapped, ids)], [run(engine, ids)])
    with pytest.raises(FileNotFoundError):
        Engine(model.shape, engine.sizes, tmp_path / "absent", model.tensors)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"num_taps": 3}, "4 taps"),
        ({"num_experts": 8}, "experts"),
        ({"key_dim": 20}, "key_dim must be a multiple of 16"),
        ({"value_dim": 8}, "value_dim must be a multiple of 16"),
        ({"value_dim": 2048}, "must not exceed 1024"),
        ({"head_dim": 24}, "head_dim must be a multiple of 16"),
        ({"head_dim": 1040}, "must not exceed 1024"),
        ({"key_heads": 2, "value_heads": 3}, "multiple of key_heads"),
        ({"kv_heads": 2, "heads": 3}, "multiple of kv_heads"),
        ({"head_dim": 16, "inverse_frequencies": (1.0,) * 9, "rotary_axes": (0,) * 9}, "rotary_dim"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"layers": ()}, "layer"),
    ],
)
def test_an_unsupported_shape_names_the_constraint(tiny_models, changes, constraint):
    shape = tiny_models.random_shape(0, **changes)
    with pytest.raises(UnsupportedShape, match=constraint):
        check_shape(shape)
    check_shape(tiny_models.random_shape(0))


def test_weights_that_do_not_fit_are_refused(models, tiny_models):
    model = models("int4", 0)
    tensors = {t.name: t for t in model.tensors}

    def make(**changed):
        entries = [t for t in {**tensors, **changed}.values() if t is not None]
        return Engine(model.shape, tiny_models.SIZES, model.buffer, entries)

    norm = tensors["norm"]
    replace = type(norm)
    make()
    for entry, message in (
        (None, "norm is missing"),
        (replace("norm", "f32", norm.rows + 1, 1, norm.offset, norm.num_bytes), "has shape"),
        (replace("norm", "int4", norm.rows, 1, norm.offset, norm.num_bytes), "too short"),
        (replace("norm", "rows8", norm.rows, 1, norm.offset, len(model.buffer) - norm.offset), "f32"),
        (replace("norm", "f32", norm.rows, 1, norm.offset + 4, norm.num_bytes), "multiple of 64"),
        (replace("norm", "f32", norm.rows, 1, len(model.buffer), norm.num_bytes), "outside"),
    ):
        with pytest.raises(ValueError, match=message):
            make(norm=entry)
    with pytest.raises(UnsupportedIsa):
        model.engine(isa="mmx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": int32(1, 2, -1)}, "token id -1"),
        ({"token_ids": int32(1, 2, 10_000)}, "token id 10000"),
        ({"token_ids": np.zeros(300, np.int32)}, "256 tokens"),
        ({"rows": int32([2, 0, 0, 0])}, "add up"),
        ({"rows": int32([4, 0, 0, 0])}, "add up"),
        ({"rows": int32([1, 0, 0, 0], [2, 0, 0, 0])}, "share slot"),
        ({"rows": int32([3, -1, 0, 0])}, "starts at"),
        ({"rows": int32([3, 0, 6, 0])}, "slot 6"),
        ({"rows": int32([3, 0, 0, 1])}, "block table"),
        ({"rows": int32([3, 62, 0, 0])}, "block table"),
        ({"tables": int32(24)}, "page 24"),
        ({"tables": int32(-1)}, "page -1"),
        ({"full_at": int32(3)}, "full_at names token 3"),
        ({"top": [TopRequest(3, 1)]}, "top names token 3"),
        ({"top": [TopRequest(0, 257)]}, "257 tokens"),
        ({"top": [TopRequest(0, 0)]}, "0 tokens"),
        ({"top": [TopRequest(0, 1, int32(9_999), np.zeros(1, np.float32))]}, "id 9999"),
        ({"top": [TopRequest(0, 1, int32(1, 1), np.zeros(2, np.float32))]}, "ascend"),
        ({"top": [TopRequest(0, 1, int32(1), np.full(1, np.nan, np.float32))]}, "not a number"),
        ({"top": [TopRequest(0, 1)] * 7}, "6 tokens"),
    ],
)
def test_a_step_out_of_bounds_is_refused_and_harms_nothing(models, changes, message):
    model = models("int4", 1)
    engine = model.engine()
    values = {"token_ids": int32(1, 2, 3), "rows": int32([3, 0, 0, 0]), "tables": int32(5)}
    with pytest.raises(ValueError, match=message):
        engine.step(Step(**{**values, **changes}))
    assert len(engine.step(Step(**values, full_at=int32(2))).full) == 1


def test_an_empty_step_does_nothing(models):
    engine = models("int4", 1).engine()
    result = engine.step(Step(int32(), np.empty((0, 4), np.int32), int32()))
    assert result.full.shape[0] == 0
    assert result.top == ()


def test_readings_out_of_bounds_are_refused(models):
    engine = models("int4", 1).engine()
    delta, attention = (engine.shape.layers.index(kind) for kind in (DELTA, ATTENTION))
    for read in (
        lambda: engine.read_state(attention, 0, 1),
        lambda: engine.read_keys(delta, int32(0), 1),
        lambda: engine.read_state(delta, 6, 1),
        lambda: engine.read_columns(99, 0),
        lambda: engine.read_keys(attention, int32(24), 1),
        lambda: engine.read_values(attention, int32(0), 65),
        lambda: engine.copy_slot(0, 6),
        lambda: engine.copy_page(24, 0),
    ):
        with pytest.raises(ValueError, match=r"."):
            read()
