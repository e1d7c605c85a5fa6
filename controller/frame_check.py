"""What an agent's frame may hold. Pure; the first offence raises FrameRefused with a message that names the field.

An agent is another machine: its numbers size our tables and its words become labels, so both are bounded here and nowhere else.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection

from shoal.proto.v1 import link_pb2, node_pb2

MAX_SLOTS = 4096
MAX_TEXT = 512
"""Characters of any name, digest, address or detail."""
MAX_POOLS = 64
MAX_POWER_READINGS = 64
MAX_BUCKETS = 64
MAX_CAPABILITIES = 64
MAX_GPUS = 64
MAX_REQUEST_ID = 128

CONTROLLER_NODE_ID = "controller"
"""The label of what the controller itself does in metrics and the ledger; no node may bear it."""

_NODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FrameRefused(Exception):
    """The frame holds what it may not: the peer is broken, or speaks another protocol."""


def check_hello(hello: link_pb2.Hello) -> None:
    """The first frame: an id that can be a label, a range of versions, a state."""
    if _NODE_ID.fullmatch(hello.node_id) is None or hello.node_id == CONTROLLER_NODE_ID:
        raise FrameRefused("node_id must be 1 to 128 of A-Z a-z 0-9 . _ - and not the word 'controller'")
    if not 1 <= hello.min_protocol <= hello.max_protocol:
        raise FrameRefused("min_protocol must be at least 1 and at most max_protocol")
    _bounded("features", hello.features, MAX_CAPABILITIES)
    _texts(agent_version=hello.agent_version)
    if not hello.HasField("state"):
        raise FrameRefused("state is missing")
    check_state(hello.state)


def check_state(state: node_pb2.NodeState) -> None:
    """What a node says of itself."""
    if state.slots > MAX_SLOTS:
        raise FrameRefused(f"slots is {state.slots}, more than {MAX_SLOTS}")
    model, hardware = state.model, state.hardware
    _texts(
        **{"metrics_url": state.metrics_url, "model.name": model.name, "model.size": model.size},
        **{"model.format": model.format, "model.backend": model.backend, "model.isa": model.isa},
        **{"model.source_digest": model.source_digest, "model.serving_digest": model.serving_digest},
        **{"model.determinism_class": model.determinism_class, "hardware.cpu_model": hardware.cpu_model},
        **{"hardware.hostname": hardware.hostname, "hardware.os": hardware.os, "hardware.arch": hardware.arch},
    )
    _bounded("model.capabilities", model.capabilities, MAX_CAPABILITIES)
    if state.phase == node_pb2.NODE_PHASE_READY and not model.name:
        raise FrameRefused("model.name is empty on a ready node")
    if state.phase == node_pb2.NODE_PHASE_READY and not state.slots:
        raise FrameRefused("slots is 0 on a ready node")
    if len(hardware.gpus) > MAX_GPUS:
        raise FrameRefused(f"hardware.gpus has more than {MAX_GPUS} entries")
    _bounded("planned_bytes", state.planned_bytes, MAX_POOLS)
    _bounded("allocated_bytes", state.allocated_bytes, MAX_POOLS)


def check_heartbeat(heartbeat: link_pb2.Heartbeat) -> None:
    """Measurements: finite, no more of them than can be meant."""
    if len(heartbeat.power) > MAX_POWER_READINGS:
        raise FrameRefused(f"power has more than {MAX_POWER_READINGS} entries")
    for reading in heartbeat.power:
        _texts(domain=reading.domain, provenance=reading.provenance)
        if not math.isfinite(reading.watts) or not math.isfinite(reading.joules_total):
            raise FrameRefused("power is not a finite number")
    if not math.isfinite(heartbeat.rtt_s) or heartbeat.rtt_s < 0:
        raise FrameRefused("rtt_s is not a duration")
    for name in ("step_s", "host_s", "inter_token_s"):
        _check_histogram(name, getattr(heartbeat.stats, name))


def _check_histogram(name: str, histogram: link_pb2.HistogramState) -> None:
    bounds = histogram.bounds
    if not bounds and not histogram.counts:
        return
    if len(bounds) > MAX_BUCKETS or len(histogram.counts) != len(bounds) + 1:
        raise FrameRefused(f"stats.{name} must have at most {MAX_BUCKETS} bounds and one count more than bounds")
    rising = all(low < high for low, high in itertools.pairwise(bounds))
    if not rising or not all(map(math.isfinite, bounds)) or not math.isfinite(histogram.sum) or histogram.sum < 0:
        raise FrameRefused(f"stats.{name} must have rising finite bounds and a finite sum")


def check_outputs(batch: link_pb2.OutputBatch) -> None:
    """Ids only: whether an output continues its stream is judged where the stream is known."""
    for output in batch.outputs:
        if not 0 < len(output.request_id) <= MAX_REQUEST_ID:
            raise FrameRefused(f"outputs has a request_id that is empty or longer than {MAX_REQUEST_ID}")


def _bounded(name: str, words: Collection[str], limit: int) -> None:
    if len(words) > limit or any(len(word) > MAX_TEXT for word in words):
        raise FrameRefused(f"{name} has more than {limit} entries or one longer than {MAX_TEXT}")


def _texts(**fields: str) -> None:
    for name, text in fields.items():
        if len(text) > MAX_TEXT:
            raise FrameRefused(f"{name} is longer than {MAX_TEXT} characters")
