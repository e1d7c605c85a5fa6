"""Which node is picked, and why."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from shoal_fake_fleet import ready_state

from shoal.controller.registry import NodeEntry, Registry
from shoal.controller.router import Wanted, pick
from shoal.proto.v1 import link_pb2


def fleet(**slots: int) -> Registry:
    registry = Registry()
    for node_id, count in slots.items():
        registry.register(node_id, ready_state(slots=count), 0.0)
    return registry


def node(registry: Registry, node_id: str) -> NodeEntry:
    entry = registry.get(node_id)
    assert entry is not None
    return entry


def picked(registry: Registry, wanted: Wanted | None = None) -> str | None:
    choice = pick(wanted or Wanted("tiny"), registry.free("tiny"))
    if choice is None:
        return None
    registry.spend(choice.node, choice.credits)
    return choice.node.id


def test_equal_nodes_take_turns() -> None:
    registry = fleet(a=4, b=4, c=4)
    assert [picked(registry) for _ in range(6)] == ["a", "b", "c"] * 2
    for entry in registry:
        registry.give_back(entry.id, entry.generation, 4)
    assert [picked(registry) for _ in range(3)] == ["a", "b", "c"]


def test_a_full_node_is_passed_over_and_a_full_fleet_has_no_choice() -> None:
    registry = fleet(a=1, b=2)
    assert Counter(picked(registry) for _ in range(3)) == {"a": 1, "b": 2}
    assert picked(registry) is None


def test_a_faster_node_is_preferred_until_it_is_that_much_fuller() -> None:
    registry = fleet(fast=8, slow=8)
    registry.count_request("fast", 1.0, 100)
    registry.count_request("slow", 4.0, 100)
    assert [picked(registry) for _ in range(3)] == ["fast"] * 3
    assert "slow" in [picked(registry) for _ in range(3)]


def test_noise_in_the_measured_speed_does_not_send_everything_to_one() -> None:
    registry = fleet(a=8, b=8)
    registry.count_request("a", 1.00, 100)
    registry.count_request("b", 1.02, 100)
    counts: Counter[str | None] = Counter()
    for _ in range(10):
        node_id = picked(registry)
        counts[node_id] += 1
        assert node_id is not None
        registry.give_back(node_id, node(registry, node_id).generation, 1)
    assert counts == {"a": 5, "b": 5}


def test_load_that_others_put_on_a_node_counts() -> None:
    registry = fleet(a=4, b=4)
    stats = link_pb2.EngineStats(running=3, waiting=1)
    registry.beat("a", node(registry, "a").generation, link_pb2.Heartbeat(stats=stats))
    assert [picked(registry) for _ in range(2)] == ["b", "b"]


def test_the_pinned_node_or_none() -> None:
    registry = fleet(a=4, b=1)
    assert picked(registry, Wanted("tiny", node_id="b")) == "b"
    assert picked(registry, Wanted("tiny", node_id="b")) is None
    assert picked(registry, Wanted("tiny", node_id="z")) is None


def test_context_is_heeded_where_some_node_has_it() -> None:
    registry = fleet(a=2)
    registry.register("long", ready_state(slots=2, max_model_len=4096), 0.0)
    wanted = Wanted("tiny", min_context=1000)
    assert [picked(registry, wanted) for _ in range(3)] == ["long", "long", None]


def test_choices_need_a_credit_each_but_no_more_than_there_are_slots() -> None:
    registry = fleet(a=3)
    choice = pick(Wanted("tiny", num_choices=5), registry.free("tiny"))
    assert choice is not None and choice.credits == 3
    registry.spend(node(registry, "a"), 2)
    assert pick(Wanted("tiny", num_choices=2), registry.free("tiny")) is None
    assert pick(Wanted("tiny", num_choices=1), registry.free("tiny")) is not None


def test_the_reasons_name_numbers() -> None:
    choice = pick(Wanted("tiny"), fleet(a=4, b=4).free("tiny"))
    assert choice is not None
    assert choice.reasons[0] == "2 node(s) that serve tiny had the credits" and "load 0 of 4" in choice.reasons[1]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5), st.floats(0.001, 10)), min_size=1, max_size=6),
    st.integers(1, 5),
)
def test_a_choice_never_overspends_and_is_missing_only_when_all_are_full(
    nodes: list[tuple[int, int, float]], num_choices: int
) -> None:
    registry = Registry()
    for number, (slots, spent, speed) in enumerate(nodes):
        entry = registry.register(f"n{number}", ready_state(slots=slots), 0.0).entry
        registry.spend(entry, min(spent, slots))
        registry.count_request(entry.id, speed * 10, 10)
    choice = pick(Wanted("tiny", num_choices), registry.free("tiny"))
    enough = [e for e in registry if e.credits >= min(num_choices, e.state.slots)]
    assert (choice is None) == (not enough)
    if choice is not None:
        assert choice.credits <= choice.node.credits and choice.node in enough
        assert choice == pick(Wanted("tiny", num_choices), registry.free("tiny"))


def test_in_a_large_fleet_the_first_free_nodes_are_compared_and_all_get_their_turn() -> None:
    registry = fleet(**{f"n{number:04}": 1 for number in range(1000)})
    assert len({picked(registry) for _ in range(1000)}) == 1000
    assert picked(registry) is None
