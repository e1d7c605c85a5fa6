"""A node as administrators see it. Pure."""

from __future__ import annotations

from shoal.proto.v1 import fleet_pb2

from .registry import LinkStatus, NodeEntry


def node_message(entry: NodeEntry, now: float) -> fleet_pb2.Node:
    """Everything known of the node. Absent fields are not known; a lost node has no measurements."""
    node = fleet_pb2.Node(
        id=entry.id,
        link=entry.link.value,
        state=entry.state,
        credits=entry.credits,
        in_flight=entry.in_flight,
        lease_age_s=max(0.0, now - entry.last_seen_at),
        requests_total=entry.requests_total,
    )
    heartbeat = entry.heartbeat
    if heartbeat is not None:
        if heartbeat.HasField("stats"):
            node.stats.CopyFrom(heartbeat.stats)
        if heartbeat.HasField("rtt_s"):
            node.rtt_s = heartbeat.rtt_s
        node.resident_bytes = heartbeat.agent_resident_bytes + heartbeat.engine_resident_bytes
        node.power.extend(heartbeat.power)
    return node


def state_word(entry: NodeEntry) -> str:
    """lost, leaving, or the phase in lower case: the label `state` of `shoal_agents`."""
    if entry.link is LinkStatus.LOST:
        return "lost"
    if entry.is_leaving:
        return "draining"
    return _PHASE_WORDS.get(entry.state.phase, "unknown")


_PHASE_WORDS = {1: "loading", 2: "ready", 3: "draining", 4: "failed"}
STATE_WORDS = ("loading", "ready", "draining", "failed", "unknown", "lost")
