"""The gRPC server: agents, clients, administrators, health and reflection on one port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from google.protobuf.descriptor import FileDescriptor
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal.proto.v1 import (
    fleet_pb2,
    fleet_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    link_pb2,
    link_pb2_grpc,
)

from .fleet_service import FleetService
from .inference_service import InferenceService
from .link_service import LinkService
from .registry import Registry

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Largest message of the port: a frame of the link."""

MAX_CALLS = 65_536
"""Calls under way at a time, links of agents among them; gRPC answers RESOURCE_EXHAUSTED beyond it."""

STOP_GRACE_S = 1.0
"""How long calls may go on after the server was told to stop."""

HEALTH_INTERVAL_S = 0.1

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    # Two controllers on one port would each get a part of the agents without anybody noticing.
    ("grpc.so_reuseport", 0),
    # Clients behind a NAT may ping every 10 s, also while nothing is under way.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A dead peer of a call that only reads is found out within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

_INFERENCE: FileDescriptor = inference_pb2.DESCRIPTOR
INFERENCE_NAME = _INFERENCE.services_by_name["Inference"].full_name
SERVICE_NAMES = (
    INFERENCE_NAME,
    fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name,
    link_pb2.DESCRIPTOR.services_by_name["AgentLink"].full_name,
)


class AddressInUse(Exception):
    """The port cannot be had; the message names it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the server serves."""

    link: LinkService
    inference: InferenceService
    fleet: FleetService


class GrpcServer:
    """Bound when constructed and started; `serve` keeps the health of `Inference` true until cancelled."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._registry = registry
        self._server = aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
        self._health = health.aio.HealthServicer()
        self._was_serving: bool | None = None
        link_pb2_grpc.add_AgentLinkServicer_to_server(services.link, self._server)
        inference_pb2_grpc.add_InferenceServicer_to_server(services.inference, self._server)
        fleet_pb2_grpc.add_FleetServicer_to_server(services.fleet, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises AddressInUse."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = int(self._server.add_insecure_port(address))
        except RuntimeError:
            bound = 0
        if not bound:
            raise AddressInUse(f"cannot listen on {address}: the address is in use or not this machine's")
        await self._set_health()
        await self._server.start()
        return bound

    async def serve(self) -> None:
        """Keep the health status: `Inference` and the whole server serve when a model does."""
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            await self._set_health()

    async def _set_health(self) -> None:
        is_serving = bool(self._registry.ready_models())
        if is_serving == self._was_serving:
            return
        self._was_serving = is_serving
        serving, idle = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        status = serving if is_serving else idle
        for name in ("", INFERENCE_NAME):
            await self._health.set(name, status)
        await self._health.set(SERVICE_NAMES[1], serving)

    async def stop(self) -> None:
        """End every call, within STOP_GRACE_S."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_GRACE_S)
