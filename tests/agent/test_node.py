"""The node's phase as others see it."""

from __future__ import annotations

import json
from pathlib import Path

from shoal.agent.engine_process import EngineConfig, EnginePhase, EngineProcess
from shoal.agent.node import Node
from shoal.agent.worker import Worker
from shoal.proto.v1 import node_pb2
from shoal.runtime import wire


def node_with_engine(tmp_path: Path) -> tuple[Node, EngineProcess]:
    node = Node("n1", node_pb2.Hardware(), "m", {}, Worker(), tmp_path / "status.json", lambda error: None)
    configure = wire.Configure(model_dir="/nowhere", served_name="m")
    engine = EngineProcess(EngineConfig(("true",), configure, tmp_path / "engine.log"), node)
    node.attach(engine, [], "http://127.0.0.1:1/metrics")
    return node, engine


def test_a_node_whose_engine_was_never_started_is_loading_not_failed(tmp_path: Path) -> None:
    node, engine = node_with_engine(tmp_path)
    assert engine.phase is EnginePhase.WAITING
    node.on_link_changed()
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "loading"


def test_a_node_whose_engine_died_has_failed_until_the_next_one_starts(tmp_path: Path) -> None:
    node, engine = node_with_engine(tmp_path)
    engine.failure = wire.ErrorInfo(code="engine_failed", message="it died", retryable=True)
    assert node.phase == node_pb2.NODE_PHASE_FAILED
    engine.phase = EnginePhase.STARTING
    assert node.phase == node_pb2.NODE_PHASE_LOADING
