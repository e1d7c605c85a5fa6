"""The engine's team of threads, seen from outside: it goes on when oversubscribed, sleeps when idle, and leaves no trace."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shoal.kernels.cpu.engine import TopRequest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

NUM_STEPS = 20
ENOUGH_S = 60.0
"""For NUM_STEPS steps of a tiny model, which take milliseconds: what has not ended by then stands still."""


@pytest.fixture(scope="module")
def model(packing, tiny_models):
    return tiny_models.random_model(packing, 1, "int4")


def run(engine, num_tokens=20, start=0):
    ids = np.arange(num_tokens, dtype=np.int32) % engine.shape.vocab_size
    rows = np.array([[num_tokens, start, 0, 0]], np.int32)
    top = [TopRequest(num_tokens - 1, 5)]
    full = np.empty((num_tokens, engine.shape.vocab_size), np.float32)
    ((best, _, _),) = engine.step(
        ids, rows, np.array([3, 1], np.int32), top, np.arange(num_tokens, dtype=np.int32), full
    )
    return full, best


def test_more_threads_than_processors_give_the_same(model):
    want = run(model.engine())
    engine = model.engine(threads=4 * len(os.sched_getaffinity(0)) if sys.platform == "linux" else 8)
    for _ in range(3):
        for got, expected in zip(run(engine), want, strict=True):
            assert np.array_equal(got, expected)


def test_threads_outnumber_the_work(model):
    """More threads than panels, heads and tokens."""
    want = run(model.engine(), num_tokens=1)
    for got, expected in zip(run(model.engine(threads=33), num_tokens=1), want, strict=True):
        assert np.array_equal(got, expected)


@linux_only
def test_pinned_threads_and_the_callers_own_place(model):
    before = os.sched_getaffinity(0)
    first = min(before)
    engine = model.engine(threads=2, cpus=(first, first))
    for got, expected in zip(run(engine), run(model.engine()), strict=True):
        assert np.array_equal(got, expected)
    assert os.sched_getaffinity(0) == before
    assert [first] in [sorted(os.sched_getaffinity(int(task.name))) for task in Path("/proc/self/task").iterdir()]


@linux_only
def test_a_processor_that_does_not_exist_is_no_reason_to_stop(model):
    assert np.array_equal(run(model.engine(threads=2, cpus=(1000, 100_000)))[0], run(model.engine())[0])


def test_the_callers_denormals_survive(model):
    run(model.engine(threads=2))
    tiny = np.array([1e-40], np.float32)
    assert (tiny * np.float32(0.5))[0] > 0


@linux_only
def test_an_idle_team_takes_no_processor_time(model):
    engine = model.engine(threads=4)
    run(engine)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05  # a watching thread alone would take 0.3 s
    run(engine)


@linux_only
def test_threads_end_with_their_engine(model):
    def num_threads():
        return len(list(Path("/proc/self/task").iterdir()))

    before = num_threads()
    engine = model.engine(threads=5)
    run(engine)
    assert num_threads() == before + 4
    del engine
    until = time.monotonic() + 5  # the kernel may list a joined thread for a moment
    while num_threads() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert num_threads() == before


@linux_only
def test_pools_that_are_made_present_have_no_thread_that_fills_them(model):
    def tasks():
        return len(list(Path("/proc/self/task").iterdir()))

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, want = tasks(), run(model.engine())[0]
    engine = model.engine(num_pages=20_000)
    pool = engine.pool_bytes["kv"]
    assert pool > 32 << 20
    assert tasks() == before + 1
    resident = resident_bytes()
    engine.make_present()
    until = time.monotonic() + 5  # the kernel may list a joined thread for a moment
    while tasks() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert tasks() == before
    assert resident_bytes() - resident > pool - (16 << 20)  # the thread may have begun
    engine.make_present()
    assert np.array_equal(run(engine)[0], want)


def test_engines_run_side_by_side(model):
    """Each from a thread of its own, which the interpreter's lock does not hold up."""
    want = run(model.engine())[0]
    equal = []

    def serve():
        engine = model.engine(threads=2)
        equal.append(all(np.array_equal(run(engine)[0], want) for _ in range(20)))

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 3


def test_two_callers_of_one_engine_do_not_mix(model):
    """One of them is refused while the other's step runs."""
    engine = model.engine(threads=2)
    want = run(engine)[0]
    equal = []

    def serve():
        for _ in range(30):
            try:
                equal.append(np.array_equal(run(engine)[0], want))
            except RuntimeError as error:
                assert "another thread" in str(error)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal
    assert all(equal)


def advance_apart(model, num_engines, prepare, **sizes):
    """NUM_STEPS steps of each of so many engines, all at once, each driven by a thread that `prepare` was called on. The results."""
    finished = []

    def serve():
        prepare()
        engine = model.engine(**sizes)
        results = [run(engine)[0]] + [run(engine, 5, 20 + 5 * i)[0] for i in range(NUM_STEPS - 1)]
        finished.append(results)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(num_engines)]
    deadline = time.monotonic() + ENOUGH_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert len(finished) == num_engines, f"{num_engines - len(finished)} of {num_engines} engines stand still"
    return finished


def assert_equal_steps(finished, want):
    for results in finished:
        for got, expected in zip(results, want, strict=True):
            assert np.array_equal(got, expected)


@linux_only
@pytest.mark.parametrize("threads", [2, 5])
def test_a_team_with_one_processor_goes_on(model, threads):
    """Whoever waits leaves the processor to whom it waits for. Threads inherit where they may run."""
    (want,) = advance_apart(model, 1, lambda: None)
    only = min(os.sched_getaffinity(0))
    assert_equal_steps(advance_apart(model, 1, lambda: os.sched_setaffinity(0, {only}), threads=threads), want)


@linux_only
def test_two_teams_pinned_to_the_same_processors_go_on(model):
    (want,) = advance_apart(model, 1, lambda: None)
    cores = sorted(os.sched_getaffinity(0))
    pins = (cores[0], cores[-1])
    assert_equal_steps(advance_apart(model, 2, lambda: None, threads=2, cpus=pins), want)


@linux_only
def test_who_waits_for_a_slow_member_sleeps(model):
    """The second thread of the team is given next to no time; meanwhile the first, on a processor of its own, takes next to none."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two processors")
    tasks = Path("/proc/self/task")
    before = {task.name for task in tasks.iterdir()}
    engine = model.engine(threads=2, cpus=(cores[0], cores[1]))
    (member,) = {task.name for task in tasks.iterdir()} - before
    run(engine)
    os.setpriority(os.PRIO_PROCESS, int(member), 19)
    code = f"import os; os.sched_setaffinity(0, {{{cores[1]}}}); print(flush=True)\nwhile True: pass"
    hog = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        hog.stdout.readline()
        wall, used, deadline = 0.0, 0.0, time.monotonic() + ENOUGH_S
        while wall < 0.5:
            assert time.monotonic() < deadline
            started_at, used_before = time.monotonic(), time.thread_time()
            run(engine)
            if (step_s := time.monotonic() - started_at) > 0.01:  # a step that had to wait
                wall, used = wall + step_s, used + time.thread_time() - used_before
    finally:
        hog.kill()
        hog.communicate()
    assert used < 0.5 * wall
