"""Which repetitions count."""

from hypothesis import given
from hypothesis import strategies as st
from samples import MAX_SWITCHES_PER_S, Limit, Measurement, beside_limits, summarise

QUIET, NOISY = int(MAX_SWITCHES_PER_S), int(MAX_SWITCHES_PER_S) + 1


def test_a_trickle_of_switches_is_no_disturbance():
    assert not Measurement((1.0,), 1.0, QUIET).disturbed
    assert Measurement((1.0,), 1.0, NOISY).disturbed
    assert not Measurement((1.0,), 10.0, 10 * QUIET).disturbed
    assert Measurement((1.0,), 0.001, 1).disturbed


def test_disturbed_measurements_are_discarded():
    summary = summarise(
        [Measurement((10.0, 12.0), 1.0, 0), Measurement((1.0,), 1.0, NOISY), Measurement((11.0,), 1.0, 0)]
    )
    assert (summary.median, summary.quiet, summary.taken) == (11.0, 3, 4)
    assert summary.spread == 1 / 11


def test_where_all_were_disturbed_all_count_and_it_is_said():
    summary = summarise([Measurement((4.0,), 1.0, 99), Measurement((6.0,), 1.0, 99)])
    assert (summary.median, summary.quiet, summary.taken) == (5.0, 0, 2)


def test_nothing_has_no_summary():
    assert summarise([]) is None
    assert summarise([Measurement((), 1.0, 0)]) is None


def test_each_repetition_has_its_own_share():
    calm, fast = Measurement((30.0,), 1.0, 0, 33.0), Measurement((54.0,), 1.0, 0, 60.0)
    noisy = Measurement((10.0,), 1.0, NOISY, 60.0)
    assert beside_limits([calm]) == Limit(33.0, 30 / 33, 1, 1)
    assert beside_limits([calm, noisy, fast]) == Limit(46.5, (30 / 33 + 0.9) / 2, 2, 3)
    assert beside_limits([noisy]) == Limit(60.0, 1 / 6, 0, 1)
    assert beside_limits([Measurement((5.0,), 1.0, 0)]) is None


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.booleans()), min_size=1))
def test_the_median_lies_among_the_values_that_count(drawn):
    summary = summarise([Measurement((value,), 1.0, NOISY if noisy else 0) for value, noisy in drawn])
    counted = [value for value, noisy in drawn if not noisy] or [value for value, _ in drawn]
    assert min(counted) <= summary.median <= max(counted)
    assert summary.quiet == sum(not noisy for _, noisy in drawn)
