"""The books of nodes: generations, credits, what is lost and forgotten, and what watchers hear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal_fake_fleet import ready_state

from shoal.controller.registry import LOST_KEPT_S, MAX_LOST_NODES, FleetFull, LinkStatus, Registry
from shoal.proto.v1 import link_pb2, node_pb2


def test_a_reconnect_replaces_the_older_stream_and_its_late_words_are_ignored() -> None:
    registry = Registry()
    first = registry.register("a", ready_state(), 0.0)
    assert first.replaced is None
    registry.spend(first.entry, 2)
    second = registry.register("a", ready_state(slots=4), 1.0)
    assert second.replaced == first.entry.generation
    registry.set_state("a", first.entry.generation, ready_state("late"))
    registry.give_back("a", first.entry.generation, 2)
    assert not registry.lose("a", first.entry.generation, 2.0)
    entry = registry.get("a")
    assert entry is second.entry and entry.credits == 4 and entry.model_name == "tiny"
    assert [e.id for e in registry.ready("tiny")] == ["a"]


def test_only_linked_ready_nodes_that_stay_have_credits() -> None:
    registry = Registry()
    entry = registry.register("a", node_pb2.NodeState(phase=node_pb2.NODE_PHASE_LOADING, slots=2), 0.0).entry
    assert entry.credits == 0 and not registry.ready_models()
    registry.set_state("a", entry.generation, ready_state())
    assert entry.credits == 2 and registry.ready_models() == ["tiny"]
    registry.set_state("a", entry.generation, node_pb2.NodeState(phase=node_pb2.NODE_PHASE_FAILED))
    assert entry.credits == 0 and not registry.ready_models()
    registry.set_state("a", entry.generation, ready_state())
    registry.set_leaving("a", entry.generation)
    assert entry.credits == 0 and not registry.ready_models() and registry.knows_model("tiny")


def test_a_slot_count_that_shrinks_below_what_is_in_flight_gives_no_negative_credit() -> None:
    registry = Registry()
    entry = registry.register("a", ready_state(slots=4), 0.0).entry
    registry.spend(entry, 3)
    registry.set_state("a", entry.generation, ready_state(slots=2))
    assert entry.credits == 0


def test_a_lost_node_stays_visible_without_measurements_and_is_forgotten_in_time() -> None:
    registry = Registry()
    entry = registry.register("a", ready_state(), 0.0).entry
    registry.beat("a", entry.generation, link_pb2.Heartbeat(sequence=1))
    assert registry.lose("a", entry.generation, 10.0)
    assert entry.link is LinkStatus.LOST and entry.heartbeat is None and registry.knows_model("tiny")
    registry.forget(10.0 + LOST_KEPT_S - 1)
    assert registry.get("a") is entry
    registry.forget(10.0 + LOST_KEPT_S)
    assert registry.get("a") is None and not registry.knows_model("tiny")


def test_lost_nodes_are_bounded_the_longest_lost_go_first() -> None:
    registry = Registry()
    for number in range(MAX_LOST_NODES + 3):
        entry = registry.register(f"n{number}", ready_state(), float(number) / 100).entry
        registry.lose(entry.id, entry.generation, float(number) / 100)
    assert len(registry) == MAX_LOST_NODES
    assert registry.get("n2") is None and registry.get("n3") is not None


def test_a_full_fleet_turns_new_nodes_away_and_takes_known_ones_back() -> None:
    registry = Registry(max_nodes=1)
    registry.register("a", ready_state(), 0.0)
    with pytest.raises(FleetFull):
        registry.register("b", ready_state(), 0.0)
    assert registry.register("a", ready_state(), 1.0).replaced == 1


def test_models_are_ranked_by_parameters() -> None:
    registry = Registry()
    registry.register("a", ready_state("small", num_parameters=10), 0.0)
    registry.register("b", ready_state("large", num_parameters=20), 0.0)
    registry.register("c", ready_state("also-large", num_parameters=20), 0.0)
    assert registry.ready_models() == ["also-large", "large", "small"]


def test_a_watcher_gets_the_newest_of_each_node_once() -> None:
    registry = Registry()
    a = registry.register("a", ready_state(), 0.0).entry
    b = registry.register("b", ready_state(), 0.0).entry
    changes = registry.changes_since(-1, set())
    assert [e.id for e in changes.changed] == ["a", "b"]
    for number in range(5):
        registry.beat("a", a.generation, link_pb2.Heartbeat(sequence=number))
    later = registry.changes_since(changes.version, {"a", "b"})
    assert [(e.id, e.heartbeat.sequence if e.heartbeat else None) for e in later.changed] == [("a", 4)]
    registry.lose("b", b.generation, 1.0)
    registry.forget(1.0 + LOST_KEPT_S)
    last = registry.changes_since(later.version, {"a", "b"})
    assert last.removed == ["b"] and last.changed == []
    assert not registry.changes_since(last.version, {"a"}).changed


def test_speed_is_a_moving_mean_that_outlives_a_reconnect() -> None:
    registry = Registry()
    registry.register("a", ready_state(), 0.0)
    registry.count_request("a", decode_s=1.0, num_tokens=10)
    registry.count_request("a", decode_s=0.0, num_tokens=0)
    registry.count_request("a", decode_s=2.0, num_tokens=10)
    again = registry.register("a", ready_state(), 1.0).entry
    assert again.seconds_per_token == pytest.approx(0.12) and again.requests_total == 3


@given(st.lists(st.tuples(st.sampled_from(["register", "ready", "failed", "leave", "lose", "spend", "back"]),
                          st.integers(0, 2), st.integers(1, 3)), max_size=60))  # fmt: skip
def test_the_index_and_the_credits_agree_with_the_nodes_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    registry, version = Registry(), 0
    for now, (action, number, amount) in enumerate(steps):
        node_id = f"n{number}"
        entry = registry.get(node_id)
        generation = entry.generation if entry is not None else 0
        match action:
            case "register":
                registry.register(node_id, ready_state(f"m{amount}", slots=amount), float(now))
            case "ready":
                registry.set_state(node_id, generation, ready_state(f"m{amount}", slots=amount))
            case "failed":
                registry.set_state(node_id, generation, node_pb2.NodeState(phase=node_pb2.NODE_PHASE_FAILED))
            case "leave":
                registry.set_leaving(node_id, generation)
            case "lose":
                registry.lose(node_id, generation, float(now))
            case "spend" if entry is not None and entry.credits >= amount:
                registry.spend(entry, amount)
            case "back":
                registry.give_back(node_id, generation, amount)
        assert registry.version >= version
        version = registry.version
        indexed = {(name, e.id) for name in registry.ready_models() for e in registry.ready(name)}
        assert indexed == {(e.model_name, e.id) for e in registry if e.is_ready}
        free = {e.id for name in registry.ready_models() for e in registry.free(name)}
        assert free == {e.id for e in registry if e.credits}
        assert all(e.in_flight >= 0 and e.credits >= 0 and (e.is_ready or not e.credits) for e in registry)
        assert all(registry.get(e.id) is e for name in registry.ready_models() for e in registry.ready(name))
