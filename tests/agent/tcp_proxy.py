"""A TCP proxy whose connections can be made silent: open, and nothing passes, as after a cable was pulled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass
class Proxy:
    port: int = 0
    num_connections: int = 0
    passing: list[asyncio.Event] = field(default_factory=list)

    def silence(self) -> None:
        """Connections that stand now carry nothing any more; new ones do."""
        for event in self.passing:
            event.clear()


@contextlib.asynccontextmanager
async def tcp_proxy(target_port: int) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                await passes.wait()
                writer.write(chunk)
                await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
        passes = asyncio.Event()
        passes.set()
        proxy.num_connections += 1
        proxy.passing.append(passes)
        writers.extend((writer, far_writer))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(pipe(reader, far_writer, passes), pipe(far_reader, writer, passes))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for event in proxy.passing:
            event.set()
        for writer in writers:
            writer.close()
