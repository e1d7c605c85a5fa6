"""Nodes and requests as the admin routes and the console show them. Pure; what is not known is null, never zero."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from shoal.proto.v1 import fleet_pb2, node_pb2

from .request_record import RequestRecord

_PHASES = {
    node_pb2.NODE_PHASE_LOADING: "loading",
    node_pb2.NODE_PHASE_READY: "ready",
    node_pb2.NODE_PHASE_DRAINING: "draining",
    node_pb2.NODE_PHASE_FAILED: "failed",
}


def node_state(node: fleet_pb2.Node) -> str:
    """loading, ready, draining, failed, unknown; or lost, whatever its last word was."""
    return "lost" if node.link == "lost" else _PHASES.get(node.state.phase, "unknown")


def node_view(node: fleet_pb2.Node) -> dict[str, Any]:
    """Sizes in bytes, durations in seconds, power in watts."""
    state, model, hardware = node.state, node.state.model, node.state.hardware
    stats = node.stats if node.HasField("stats") else None
    return {
        "id": node.id,
        "state": node_state(node),
        "link": node.link,
        "detail": state.detail or None,
        "pid": state.pid or None,
        "engine_pid": state.engine_pid or None,
        "metrics_url": state.metrics_url or None,
        "model": model.name or None,
        "size": model.size or None,
        "format": model.format or None,
        "backend": model.backend or None,
        "isa": model.isa or None,
        "max_model_len": model.max_model_len or None,
        "num_parameters": model.num_parameters or None,
        "capabilities": list(model.capabilities),
        "source_digest": model.source_digest or None,
        "serving_digest": model.serving_digest or None,
        "determinism_class": model.determinism_class or None,
        "slots": state.slots,
        "credits": node.credits,
        "in_flight": node.in_flight,
        "running": stats.running if stats else None,
        "waiting": stats.waiting if stats else None,
        "generation_tokens": stats.generation_tokens if stats else None,
        "requests_total": node.requests_total,
        "planned_bytes": dict(state.planned_bytes),
        "allocated_bytes": dict(state.allocated_bytes),
        "planned_total_bytes": sum(state.planned_bytes.values()) or None,
        "resident_bytes": node.resident_bytes or None,
        "lease_age_s": node.lease_age_s,
        "rtt_s": node.rtt_s if node.HasField("rtt_s") else None,
        "power": [_reading(reading) for reading in node.power],
        "hardware": _hardware(hardware) if state.HasField("hardware") else None,
    }


def total_watts(view: dict[str, Any]) -> float | None:
    """Of the widest domain that the node reports; domains contain one another, so they are not added."""
    return max((reading["watts"] for reading in view["power"]), default=None)


def request_view(record: RequestRecord) -> dict[str, Any]:
    """What the ledger keeps: tokens, times and the end, never what was said."""
    return asdict(record)


def _reading(reading: Any) -> dict[str, Any]:
    return {
        "domain": reading.domain,
        "provenance": reading.provenance,
        "watts": reading.watts,
        "joules_total": reading.joules_total if reading.HasField("joules_total") else None,
    }


def _hardware(hardware: node_pb2.Hardware) -> dict[str, Any]:
    return {
        "hostname": hardware.hostname,
        "os": hardware.os,
        "arch": hardware.arch,
        "cpu_model": hardware.cpu_model,
        "physical_cores": hardware.physical_cores or None,
        "logical_cores": hardware.logical_cores or None,
        "memory_total_bytes": hardware.memory_total_bytes or None,
        "memory_limit_bytes": hardware.memory_limit_bytes or None,
        "gpus": [{"name": g.name, "memory_bytes": g.memory_bytes, "driver": g.driver} for g in hardware.gpus],
        "has_battery": hardware.has_battery,
    }
