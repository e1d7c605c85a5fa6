"""Addresses `host:port`, and which of them may be used without TLS."""

from __future__ import annotations

import ipaddress
import re

from .errors import AddressRefused

MAX_CONTROLLERS = 16
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def split_address(address: str) -> tuple[str, int]:
    """Host (without brackets) and port. Raises AddressRefused for what is not `host:port` or `[v6]:port`."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    valid = colon and port.isascii() and port.isdigit() and 0 <= int(port) < 65536
    if valid and bracketed:
        valid = _is_ip(host, 6)
    elif valid:
        valid = _HOST.fullmatch(host) is not None
    if not valid:
        raise AddressRefused(f"{address!r} is not an address like 127.0.0.1:9090 or [::1]:9090")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """An address of this machine that no other can reach, or the name that stands for it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_controllers(text: str) -> tuple[str, ...]:
    """`H:P[,H:P]` as addresses, each once. Raises AddressRefused."""
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not addresses:
        raise AddressRefused("no controller address was given")
    if len(addresses) > MAX_CONTROLLERS:
        raise AddressRefused(f"{len(addresses)} controllers are more than {MAX_CONTROLLERS}")
    for address in addresses:
        if split_address(address)[1] == 0:
            raise AddressRefused(f"{address!r}: port 0 cannot be dialled")
    return addresses


def exposed(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Those that leave the machine."""
    return tuple(address for address in addresses if not is_loopback(split_address(address)[0]))


def require_safe(addresses: tuple[str, ...], *, insecure: bool, what: str) -> str | None:
    """None when all are loopback; a warning to be said loudly when they are not and `insecure` allows it.

    Raises AddressRefused otherwise: without TLS everybody on the way reads prompts and answers.
    """
    outside = exposed(addresses)
    if not outside:
        return None
    if not insecure:
        raise AddressRefused(
            f"{what} {', '.join(outside)} is not on this machine and the connection has no TLS; "
            "--insecure allows it, and then everybody on the network can read prompts and answers"
        )
    return (
        f"WARNING: {what} {', '.join(outside)} without TLS: everybody on the network can read prompts and answers, "
        "and answer in this service's name"
    )


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False
