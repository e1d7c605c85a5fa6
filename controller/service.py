"""Builds a controller from its parts, runs it, and ends it in order. The only file that knows them all."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import sqlalchemy as sa

from . import http_server
from .config import Address, ControllerConfig
from .dispatch import Dispatcher
from .fleet_service import FleetService
from .gateway import GatewayConfig, build_app
from .grpc_server import AddressInUse, GrpcServer, Services
from .inference_service import InferenceService
from .link_service import LinkService
from .metrics import Metrics
from .registry import Registry
from .request_log import RequestLog
from .request_record import RequestRecord
from .state_store import StateStore, StateUnusable, migrate

FORGET_INTERVAL_S = 5.0
"""How often lost nodes are looked at."""

LAST_WRITE_TIMEOUT_S = 0.5
"""How long the last batch of the ledger may take when the controller ends."""

log = logging.getLogger(__name__)


class ServiceFailed(Exception):
    """The controller could not start; the message is one line and says what to do."""


class _Books:
    """`Recorder`: metrics count, the ledger remembers."""

    def __init__(self, metrics: Metrics, ledger: RequestLog) -> None:
        self._metrics = metrics
        self._ledger = ledger

    def record(self, record: RequestRecord) -> None:
        self._metrics.record(record)
        self._ledger.append(record)

    def refuse(self, reason: str) -> None:
        self._metrics.refuse(reason)


class Controller:
    """The parts, connected. Nothing runs before `run`."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self._store = StateStore(config.state_path)
        self._registry = Registry()
        self._ledger = RequestLog(self._store, self._registry)
        # The metrics ask dispatch for its queue, and dispatch tells the metrics of ends: one of the two is late.
        self._metrics = Metrics(self._registry, lambda: self._dispatcher.num_waiting, config.version)
        self._links = LinkService(self._registry, config.terms)
        self._dispatcher = Dispatcher(self._registry, self._links, _Books(self._metrics, self._ledger), config.limits)
        self._links.attach(self._dispatcher)
        self._stopping = asyncio.Event()
        services = Services(
            link=self._links,
            inference=InferenceService(self._dispatcher),
            fleet=FleetService(self._registry, self._stopping),
        )
        self._grpc = GrpcServer(services, self._registry)
        self._app = build_app(self._dispatcher, self._metrics, self._ledger, GatewayConfig(config.version))

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end within five seconds. Raises ServiceFailed when it cannot listen."""
        config, failure = self._config, ""
        try:
            async with asyncio.TaskGroup() as group:
                grpc_port = await self._grpc.start(config.grpc.host, config.grpc.port)
                bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                http = group.create_task(
                    http_server.serve(
                        self._app, config.http.host, config.http.port, lambda _, port: bound.set_result(port)
                    ),
                    name="controller.http",
                )
                background = [
                    group.create_task(self._grpc.serve(), name="controller.health"),
                    group.create_task(self._ledger.run(), name="controller.ledger"),
                    group.create_task(self._forget_lost(), name="controller.forget"),
                ]
                self._announce(await bound, grpc_port)
                await stop.wait()
                await self._end(http)
                for task in background:
                    task.cancel()
        except* AddressInUse as group_failed:
            failure = str(group_failed.exceptions[0])
        except* OSError as group_failed:
            error = group_failed.exceptions[0]
            cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            failure = f"cannot listen on {config.http}: {cause}"
        finally:
            await self._close_store()
        # Not raised inside `except*`: Python before 3.11.4 would wrap it in a group.
        if failure:
            raise ServiceFailed(failure)

    def _announce(self, http_port: int, grpc_port: int) -> None:
        http, grpc = Address(self._config.http.host, http_port), Address(self._config.grpc.host, grpc_port)
        log.info("listening: HTTP on http://%s, gRPC on %s", http, grpc)
        if self._config.status_file is not None:
            content = {"pid": os.getpid(), "http": f"http://{http}", "grpc": str(grpc)}
            _write_atomically(self._config.status_file, json.dumps(content))

    async def _forget_lost(self) -> None:
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            self._registry.forget(time.monotonic())

    async def _end(self, http: asyncio.Task[None]) -> None:
        """Streams hear why, then agents, then the ports close: about three seconds at most."""
        log.info("ending")
        self._stopping.set()
        self._dispatcher.close()
        # A turn of the loop each way: the errors reach the edges before their tasks are cancelled.
        await asyncio.sleep(0.05)
        http.cancel()
        # The HTTP server takes its own time for what is in flight; agents hear Goodbye meanwhile.
        try:
            await self._links.close()
        except TimeoutError:
            log.warning("an agent did not end its stream in time")
        await asyncio.wait({http})
        await self._grpc.stop()

    async def _close_store(self) -> None:
        try:
            async with asyncio.timeout(LAST_WRITE_TIMEOUT_S):
                await self._ledger.flush()
        except (TimeoutError, sa.exc.SQLAlchemyError) as error:
            log.error("the last records of the ledger are lost: %s", type(error).__name__)
        await self._store.close()


async def serve(config: ControllerConfig) -> None:
    """Until SIGTERM, SIGINT or, if asked for, the end of stdin. Raises ServiceFailed."""
    try:
        await asyncio.to_thread(migrate, config.state_path)
    except StateUnusable as error:
        raise ServiceFailed(str(error)) from error
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    if sys.platform == "win32":
        for number in (signal.SIGINT, signal.SIGBREAK):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
    if config.until_eof:
        # A thread of its own: pipes are not readable by every event loop, and it must not keep the process alive.
        threading.Thread(target=_wait_for_eof, args=(loop, stop), name="controller.eof", daemon=True).start()
    controller = Controller(config)
    # What was imported lives as long as the process: the collector need not walk it in the middle of streams, nor, and that
    # takes over a second on a busy machine, at the end.
    gc.freeze()
    await controller.run(stop)


def _wait_for_eof(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # no stdin at all: nobody holds its other side
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        pass  # the loop has ended by itself


def _write_atomically(path: Path, content: str) -> None:
    """A reader sees nothing or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
