"""The agent put together: probe, selection, engine, links, metrics, telemetry, and how all of it ends.

run     engine, one task a controller, telemetry and the metrics page, children of one task group
end     SIGTERM, SIGINT, or the end of stdin where that was asked for: Leaving to every controller, what runs may end
        within the grace, then the links close, the engine's stdin closes, the group is done; under 5 s in all
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shoal.runtime import wire
from shoal.runtime.config import EngineOptions

from .address import split_address
from .catalogue import Candidate, given, stored
from .engine_process import EngineConfig, EngineProcess
from .link import Link, LinkConfig
from .metrics import NodeMetrics
from .metrics_server import MetricsServer
from .node import Node
from .probe import HardwareFacts, probe
from .select import Budget, Selection, select
from .store import Store
from .telemetry import SAMPLE_INTERVAL_S, Telemetry
from .worker import Worker

DRAIN_GRACE_S = 1.0
"""What runs when the agent is told to end has this long; longer answers fail over to another node."""

LINKS_CLOSE_S = 1.5
"""Beyond the grace, how long the streams may take to close before they are left behind."""

log = logging.getLogger(__name__)


def engine_command() -> tuple[str, ...]:
    """The engine is this installation's runtime, in this interpreter. -P: the working directory is not searched."""
    return (sys.executable, "-P", "-m", "shoal.runtime")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything that the command line decides. `root` is where the machine's facts are read."""

    node_id: str
    version: str
    home: Path
    controllers: tuple[str, ...]
    models: tuple[str, ...]
    options: EngineOptions
    metrics: str = "127.0.0.1:0"
    status_file: Path | None = None
    ends_with_stdin: bool = False
    engine: Sequence[str] = field(default_factory=engine_command)
    root: Path = Path("/")


def budget_of(options: EngineOptions, hardware: HardwareFacts) -> Budget:
    """What was given, else what is available now less what is left to others."""
    if options.memory is not None:
        return Budget(options.memory, "--memory")
    available = hardware.memory_available_bytes
    headroom = hardware.headroom_bytes()
    return Budget(max(1, available.value - headroom), f"available by {available.source} less {headroom:,} for others")


def candidates_of(store: Store, models: Sequence[str]) -> list[Candidate]:
    """The models named, or all that are in the store. Raises ModelNotFound."""
    return given(store, models) if models else stored(store)


def choose(config: AgentConfig, hardware: HardwareFacts) -> Selection:
    """Look at the store and select. Raises ModelNotFound."""
    candidates = candidates_of(Store.at_home(config.home), config.models)
    return select(candidates, budget_of(config.options, hardware), config.options)


async def run_agent(config: AgentConfig, announce: Callable[[str], None]) -> None:
    """Serve until a signal. Raises an AgentError when there is nothing to serve, OSError for the metrics address."""
    hardware = await asyncio.to_thread(probe, config.root)
    selection = choose(config, hardware)
    verdict = selection.require()
    candidate, plan = verdict.candidate, verdict.plan
    assert candidate.directory is not None and plan is not None
    announce(f"{config.node_id} serves {candidate.name}: {verdict.reason}")

    worker = Worker()
    node = Node(
        config.node_id,
        hardware.to_proto(),
        candidate.name,
        plan.by_pool(),
        worker,
        config.status_file,
        lambda error: log.warning("cannot write %s: %s", config.status_file, error.strerror),
    )
    # The budget of the selection is the engine's: the plan that was chosen is the plan that is allocated.
    options = replace(config.options, memory=selection.budget.num_bytes)
    configure = wire.Configure(
        model_dir=str(candidate.directory),
        served_name=candidate.name,
        options=options.to_mapping(),
        home=str(config.home),
    )
    engine = EngineProcess(
        EngineConfig(config.engine, configure, config.home / "logs" / f"engine-{config.node_id}.log"), node
    )
    worker.attach(engine)
    links = [Link(LinkConfig(address, config.node_id, config.version), worker, node) for address in config.controllers]
    host, port = split_address(config.metrics)
    metrics = NodeMetrics(node, config.version)
    async with MetricsServer(metrics.render).listen(host, port) as url, asyncio.TaskGroup() as group:
        node.attach(engine, links, url)
        telemetry = group.create_task(_watch(node, engine, config.root), name="agent.telemetry")
        group.create_task(engine.run(), name="agent.engine")
        dialling = [group.create_task(link.run(), name=f"agent.link.{link.address}") for link in links]
        await _until_told(config.ends_with_stdin)
        announce(f"{config.node_id} is leaving")
        node.leave()
        for link in links:
            link.leave("the agent was told to end", DRAIN_GRACE_S)
        if dialling:
            await asyncio.wait(dialling, timeout=DRAIN_GRACE_S + LINKS_CLOSE_S)
        await engine.close()
        telemetry.cancel()
        for task in dialling:
            task.cancel()


async def _watch(node: Node, engine: EngineProcess, root: Path) -> None:
    """Read the sensors each second; heartbeats and the metrics page take the last look."""
    now = asyncio.get_running_loop().time
    telemetry = Telemetry(root, now())
    while True:
        # In a thread: firmware answers some of these reads after tens of milliseconds.
        node.sample = await asyncio.to_thread(telemetry.sample, engine.pid, now())
        await asyncio.sleep(SAMPLE_INTERVAL_S)


async def _until_told(ends_with_stdin: bool) -> None:
    """Until SIGTERM or SIGINT, or the end of stdin: the parent that held it is gone."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    if sys.platform == "win32":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(told.set))
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, told.set)
    if ends_with_stdin:

        def wait_for_eof() -> None:
            with contextlib.suppress(OSError, ValueError):
                while os.read(0, 4096):  # not sys.stdin: its lock, held at the end of the interpreter, is fatal
                    pass
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(told.set)

        # A daemon: a read of a pipe cannot be interrupted, and the process must be able to end before it returns.
        threading.Thread(target=wait_for_eof, name="agent.stdin", daemon=True).start()
    await told.wait()
