"""What an engine takes in memory, and what it refuses: shapes, weights, steps."""

from array import array

import numpy as np
import pytest
from shoal_test_tiny_models import assert_same_bits, ids_of, int32, run

from shoal.kernels.cpu.engine import (
    ATTENTION,
    DELTA,
    Engine,
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
        full = np.empty((1, engine.shape.vocab_size), np.float32) if "full_at" in changes else None
        engine.step(**values | changes, full=full)
    assert len(engine.logits(**values, full_at=int32(2))) == 1


def test_an_empty_step_does_nothing(models):
    engine = models("int4", 1).engine()
    assert engine.step([], [], []) == []
    assert engine.logits(int32(), np.empty((0, 4), np.int32), int32(), []).shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"token_ids": np.zeros(3, np.int64)}, TypeError, "token_ids has the wrong element type"),
        ({"token_ids": [1, 2, 1 << 40]}, ValueError, "no int32"),
        ({"token_ids": [1, "2", 3]}, TypeError, "bytes-like"),
        ({"token_ids": (1, 2, 3)}, TypeError, "bytes-like"),
        ({"rows": [3, 0, 0]}, ValueError, "4 numbers"),
        ({"tables": [array("d", [5])]}, TypeError, "tables has the wrong element type"),
        ({"top": [(0, 1)]}, TypeError, "each"),
        ({"top": [TopRequest(0, 1, int32(1), np.zeros(2, np.float32))]}, ValueError, "differ in length"),
        ({"top": [TopRequest(0, 1, int32(1), int32(1))]}, TypeError, "adjust_values has the wrong element type"),
        ({"full_at": [2]}, ValueError, "no full"),
        ({"full_at": [2], "full": np.empty((1, 3), np.float32)}, ValueError, "full must have"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_and_harm_nothing(models, changes, error, message):
    engine = models("int4", 1).engine()
    values = {"token_ids": int32(1, 2, 3), "rows": int32([3, 0, 0, 0]), "tables": int32(5)}
    with pytest.raises(error, match=message):
        engine.step(**{**values, **changes})
    assert engine.step(**values) == []


def test_lists_and_arrays_say_the_same(models):
    """Whatever carries the numbers: the bits are those of the numbers."""
    engine = models("int4", 1).engine()
    rows = [2, 0, 0, 0, 1, 0, 1, 1]
    adjusted = ([7, 3, 5], [0.5, -np.inf, 20.0])
    kinds = [
        (int32, lambda ids: int32(*ids), lambda values: np.array(values, np.float32), int32(4, 6)),
        (list, lambda ids: array("i", ids), lambda values: array("f", values), [int32(4), array("i", [6])]),
    ]
    found = []
    for kind, ids, values, tables in kinds:
        numbers = (lambda *given: list(given)) if kind is list else kind
        full = np.empty((2, engine.shape.vocab_size), np.float32)
        top = [TopRequest(2, 9, ids(adjusted[0]), values(adjusted[1])), TopRequest(0, 1)]
        best = engine.step(numbers(1, 2, 3), numbers(*rows), tables, top, numbers(0, 2), full)
        found.append((full.tobytes(), best))
    assert found[0] == found[1]
    assert 3 not in found[0][1][0][0]


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
