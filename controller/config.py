"""How a controller runs: one frozen value, built from the command line and checked here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from .dispatch import Limits
from .session import Terms


class ConfigInvalid(Exception):
    """A value cannot be used; the message says which, why, and what would do."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """No other machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """`host:port` or `[v6]:port`. Raises ConfigInvalid."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if (
        not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
        or (":" in host) != bracketed
    ):
        raise ConfigInvalid(f"{text!r} is not an address like 127.0.0.1:8080 or [::1]:8080")
    return Address(host, int(port))


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What `shoal controller run` was told."""

    http: Address
    grpc: Address
    home: Path
    """Folder of state.db."""
    version: str = ""
    insecure: bool = False
    """Allows addresses that other machines reach, without TLS."""
    status_file: Path | None = None
    """Written once both servers listen: {"pid", "http", "grpc"}."""
    until_eof: bool = False
    """End when stdin ends: the parent that holds its other side has gone, however it went."""
    limits: Limits = field(default_factory=Limits)
    terms: Terms = field(default_factory=Terms)

    @property
    def state_path(self) -> Path:
        return self.home / "state.db"

    @property
    def exposed(self) -> tuple[Address, ...]:
        """Addresses that other machines reach."""
        return tuple(address for address in (self.http, self.grpc) if not address.is_loopback)

    def check(self) -> None:
        """Raises ConfigInvalid for what must not be served."""
        if self.exposed and not self.insecure:
            raise ConfigInvalid(
                f"{' and '.join(map(str, self.exposed))} can be reached by other machines and has no TLS; "
                "listen on 127.0.0.1, or give --insecure: then everybody on the network can read prompts and answers"
            )
