"""The waits between attempts, and the log that does not grow for ever."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shoal.agent.backoff import Backoff
from shoal.agent.log_file import BoundedLog


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    backoff = Backoff(0.2, 10.0, lambda: 1.0, num_free=1)
    assert [backoff.next_delay_s() for _ in range(9)] == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    backoff.reset()
    assert [backoff.next_delay_s() for _ in range(2)] == [0.0, 0.2]


@given(st.integers(0, 2000), st.integers(0, 2**32))
def test_every_wait_is_within_the_ceiling(num_failures: int, seed: int) -> None:
    backoff = Backoff(0.1, 10.0, random.Random(seed).random)
    backoff.num_failures = num_failures
    assert 0 <= backoff.next_delay_s() < min(10.0, 0.1 * 2 ** min(num_failures, 10))


def test_a_log_keeps_two_generations(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "logs" / "e.log", max_bytes=100)
    for index in range(30):
        log.write(f"line {index:04}\n".encode())
    log.close()
    current, older = (tmp_path / "logs" / "e.log").read_bytes(), (tmp_path / "logs" / "e.log.1").read_bytes()
    assert len(current) <= 100 and len(older) <= 100
    assert (older + current).endswith(b"line 0028\nline 0029\n")
    log.write(b"x" * 500)
    assert (tmp_path / "logs" / "e.log").read_bytes() == b"x" * 100
    log.close()


def test_a_log_that_cannot_be_written_does_not_hurt(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = BoundedLog(tmp_path / "file" / "e.log")
    log.write(b"lost")
    log.close()
