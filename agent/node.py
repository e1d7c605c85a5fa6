"""The node as others see it: one place that knows the engine's phase, the books and the last look at the sensors.

Links ask it for the state and for heartbeats; the metrics page and the status file read it; the engine tells it its news.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoal.proto.v1 import link_pb2, node_pb2
from shoal.runtime import wire

from . import translate
from .atomic_file import write_json
from .books import Books
from .engine_process import EnginePhase, EngineProcess
from .link import Link
from .telemetry import Sample
from .worker import Worker

_PHASE = {
    EnginePhase.STARTING: node_pb2.NODE_PHASE_LOADING,
    EnginePhase.SERVING: node_pb2.NODE_PHASE_READY,
    EnginePhase.WAITING: node_pb2.NODE_PHASE_FAILED,
    EnginePhase.BROKEN: node_pb2.NODE_PHASE_FAILED,
    EnginePhase.CLOSED: node_pb2.NODE_PHASE_DRAINING,
}

_PHASE_WORD = {
    node_pb2.NODE_PHASE_LOADING: "loading",
    node_pb2.NODE_PHASE_READY: "ready",
    node_pb2.NODE_PHASE_DRAINING: "draining",
    node_pb2.NODE_PHASE_FAILED: "failed",
}


class Node:
    """Composed by the service; `attach` closes the circle of who tells whom."""

    def __init__(
        self,
        node_id: str,
        hardware: node_pb2.Hardware,
        model_name: str,
        planned_bytes: dict[str, int],
        worker: Worker,
        status_file: Path | None,
        on_status_error: Callable[[OSError], None],
    ) -> None:
        self.node_id = node_id
        self.model_name = model_name
        self.books = Books()
        self.sample: Sample | None = None
        self.metrics_url = ""
        self._hardware = hardware
        self._planned_bytes = planned_bytes
        self._worker = worker
        self._status_file = status_file
        self._on_status_error = on_status_error
        self._last_status: dict[str, Any] | None = None
        self._engine: EngineProcess | None = None
        self._links: list[Link] = []
        self._is_leaving = False

    def attach(self, engine: EngineProcess, links: list[Link], metrics_url: str) -> None:
        """What exists only after the node does."""
        self._engine = engine
        self._links = links
        self.metrics_url = metrics_url

    def leave(self) -> None:
        """From now on the node is draining, whatever its engine does."""
        self._is_leaving = True
        self.changed()

    # --- what it is ---

    @property
    def phase(self) -> node_pb2.NodePhase:
        if self._is_leaving:
            return node_pb2.NODE_PHASE_DRAINING
        engine = self._engine
        if engine is None or (engine.phase is EnginePhase.WAITING and engine.failure is None):
            return node_pb2.NODE_PHASE_LOADING  # nothing has failed: the first engine is about to be started
        return _PHASE[engine.phase]

    @property
    def engine_pid(self) -> int | None:
        return None if self._engine is None else self._engine.pid

    @property
    def num_engine_restarts(self) -> int:
        return 0 if self._engine is None else self._engine.num_restarts

    @property
    def ready(self) -> wire.Ready | None:
        """Facts of the loaded model while it serves."""
        return None if self._engine is None else self._engine.ready

    @property
    def planned_bytes(self) -> dict[str, int]:
        """By pool: what the engine planned, before it has spoken what the selection planned."""
        ready = self.ready
        return ready.planned_bytes if ready is not None and ready.planned_bytes else self._planned_bytes

    def state(self) -> node_pb2.NodeState:
        """The whole state, as it is pushed on each change."""
        ready = self.ready
        failure = None if self._engine is None else self._engine.failure
        state = node_pb2.NodeState(
            phase=self.phase,
            pid=os.getpid(),
            engine_pid=self.engine_pid or 0,
            metrics_url=self.metrics_url,
            slots=0 if ready is None else ready.max_running,
            hardware=self._hardware,
            planned_bytes=self.planned_bytes,
            allocated_bytes={} if ready is None else ready.allocated_bytes,
            detail="" if failure is None else f"{failure.code}: {failure.message}",
        )
        if ready is not None:
            state.model.CopyFrom(translate.served_model_to_proto(ready))
        else:
            state.model.name = self.model_name
        return state

    def heartbeat(self, sequence: int, rtt_s: float | None) -> link_pb2.Heartbeat:
        """What the controller hears at each interval. Absent fields are not known."""
        heartbeat = link_pb2.Heartbeat(sequence=sequence, rtt_s=rtt_s, engine_restarts=self.num_engine_restarts)
        stats = self.books.total()
        if stats is not None:
            heartbeat.stats.CopyFrom(translate.stats_to_proto(stats))
        sample = self.sample
        if sample is not None:
            heartbeat.agent_resident_bytes = sample.agent_resident_bytes
            heartbeat.engine_resident_bytes = sample.engine_resident_bytes or 0
            if sample.cpu_load_ratio is not None:
                heartbeat.cpu_load_ratio = sample.cpu_load_ratio
            if sample.battery_ratio is not None:
                heartbeat.battery_ratio = sample.battery_ratio
            if sample.on_battery is not None:
                heartbeat.on_battery = sample.on_battery
            for reading in sample.power:
                heartbeat.power.add(
                    domain=reading.domain,
                    provenance=reading.provenance,
                    watts=reading.watts,
                    joules_total=reading.joules_total,
                )
        return heartbeat

    def status(self) -> dict[str, Any]:
        """Content of the status file."""
        return {
            "id": self.node_id,
            "pid": os.getpid(),
            "engine_pid": self.engine_pid,
            "metrics": self.metrics_url,
            "model": self.model_name if self.ready is None else self.ready.model,
            "phase": _PHASE_WORD[self.phase],
            "detail": self.state().detail,
            "linked": [link.address for link in self._links if link.is_linked],
        }

    # --- what happens to it ---

    def changed(self) -> None:
        """Push the state to every controller and rewrite the status file."""
        for link in self._links:
            link.node_changed()
        self._write_status()

    def on_link_changed(self) -> None:
        """A link came or went."""
        self._write_status()

    def _write_status(self) -> None:
        status = self.status()
        if self._status_file is None or status == self._last_status:
            return
        self._last_status = status
        try:
            write_json(self._status_file, status, durable=False)
        except OSError as error:
            self._on_status_error(error)

    def on_phase(self) -> None:
        self.changed()

    def on_lost(self) -> None:
        self.books.engine_lost()
        self._worker.on_lost()
        self._books_changed()

    def on_frame(self, frame: wire.OutputBatch | wire.CallResult | wire.Stats) -> None:
        match frame:
            case wire.OutputBatch():
                self._worker.on_batch(frame)
            case wire.CallResult():
                self._worker.on_call_result(frame)
            case wire.Stats():
                if self.books.update(frame):
                    self._books_changed()

    def _books_changed(self) -> None:
        for link in self._links:
            link.books_changed()
