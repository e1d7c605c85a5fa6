"""First come, first served, and nobody starves."""

from __future__ import annotations

import pytest
from shoal_fake_fleet import ready_state

from shoal.controller.registry import Registry
from shoal.controller.router import Wanted
from shoal.controller.wait_queue import QueueFull, WaitQueue


def placed(queue: WaitQueue, registry: Registry) -> list[int]:
    numbers = []
    for waiting, choice in queue.place(registry.free):
        registry.spend(choice.node, choice.credits)
        numbers.append(waiting.number)
    return numbers


def test_one_that_needs_several_credits_is_not_overtaken_but_others_pass() -> None:
    registry = Registry()
    a = registry.register("a", ready_state(slots=2), 0.0).entry
    registry.register("b", ready_state("other", slots=1), 0.0)
    registry.spend(a, 1)
    queue = WaitQueue(8)
    queue.join(Wanted("tiny", num_choices=2), 0.0)
    queue.join(Wanted("tiny"), 0.0)
    queue.join(Wanted("other"), 0.0)
    assert placed(queue, registry) == [3]
    registry.give_back("a", a.generation, 1)
    assert placed(queue, registry) == [1]
    registry.give_back("a", a.generation, 2)
    assert placed(queue, registry) == [2]
    assert len(queue) == 0


def test_one_that_waits_for_a_pinned_node_holds_up_only_that_node() -> None:
    registry = Registry()
    a = registry.register("a", ready_state(slots=1), 0.0).entry
    registry.register("b", ready_state(slots=1), 0.0)
    registry.spend(a, 1)
    queue = WaitQueue(8)
    queue.join(Wanted("tiny", node_id="a"), 0.0)
    queue.join(Wanted("tiny"), 0.0)
    queue.join(Wanted("tiny"), 0.0)
    assert placed(queue, registry) == [2]
    registry.give_back("a", a.generation, 1)
    assert placed(queue, registry) == [1]


def test_the_queue_is_bounded_and_leaving_twice_is_harmless() -> None:
    queue = WaitQueue(1)
    first = queue.join(Wanted("tiny"), 0.0)
    with pytest.raises(QueueFull):
        queue.join(Wanted("tiny"), 0.0)
    queue.leave(first)
    queue.leave(first)
    assert len(queue) == 0
    queue.join(Wanted("tiny"), 0.0)
