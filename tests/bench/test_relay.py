"""What `make bench-relay` counts; how fast anything is, no test says."""

from relay import tokens_per_s


def test_only_what_comes_while_all_streams_flow_is_counted():
    assert tokens_per_s([[0.0, 1.0, 2.0, 3.0]]) == 1.0
    early, late = [0.0, 0.5, 1.0, 1.5, 2.0], [1.0, 1.25, 1.5, 1.75, 2.0, 2.5]
    assert tokens_per_s([early, late]) == 6.0
