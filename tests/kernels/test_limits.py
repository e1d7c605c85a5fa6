"""The loops of the machine's limits run on every instruction set and refuse what makes no sense. How fast they are is
no test's business."""

import numpy as np
import pytest

from shoal.kernels.cpu import UnsupportedIsa, _cpu, available_isas, limits

ISAS = available_isas()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_rates_are_positive_and_say_what_was_kept(isa, threads):
    rates = [
        limits.read_rate(isa, threads, num_bytes=1 << 20, repetitions=3),
        limits.dot_int8_rate(isa, threads, repetitions=2),
        limits.fma_f32_rate(isa, threads, repetitions=2),
    ]
    for rate, taken in zip(rates, (3, 2, 2), strict=True):
        assert rate.per_s > 0
        assert 0 <= rate.kept <= rate.taken == taken


@pytest.mark.parametrize("loop", range(limits.READ_LOOPS))
@pytest.mark.parametrize("size", [0, 1023, 4096, 4097])
def test_a_read_of_any_size_ends(size, loop):
    data = np.zeros(size, np.uint8)
    for isa in ISAS:
        assert len(_cpu.time_read(isa, data, loop, 2, 3)) == 3


def test_what_cannot_be_measured_is_refused():
    data = np.zeros(4096, np.uint8)
    with pytest.raises(UnsupportedIsa):
        _cpu.time_dot_int8("vax", 1, 1, 1)
    with pytest.raises(ValueError, match="loop"):
        _cpu.time_read("scalar", data, limits.READ_LOOPS, 1, 1)
    with pytest.raises(ValueError, match="threads"):
        _cpu.time_fma_f32("scalar", 1, 0, 1)
    with pytest.raises(TypeError):
        _cpu.time_read("scalar", data.astype(np.float32), 0, 1, 1)


def test_a_disturbed_repetition_does_not_count():
    assert limits._rate(6.0, [(1.0, 0), (2.0, 0), (9.0, 4), (3.0, 0)]) == limits.Rate(3.0, 3, 4)
    assert limits._rate(6.0, [(4.0, 1), (3.0, 2)]) == limits.Rate(2.0, 0, 2)
