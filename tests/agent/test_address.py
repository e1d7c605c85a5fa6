"""Which addresses are understood, and which may be used without TLS."""

from __future__ import annotations

import pytest

from shoal.agent.address import MAX_CONTROLLERS, is_loopback, parse_controllers, require_safe, split_address
from shoal.agent.errors import AddressRefused


@pytest.mark.parametrize(
    ("text", "parts"),
    [("127.0.0.1:9090", ("127.0.0.1", 9090)), ("[::1]:1", ("::1", 1)), ("a-b.example:0", ("a-b.example", 0))],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "host:x", "host:65536", "host:-1", "::1:80", "[::1]", "[a]:1", "a b:1", "h:٣"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressRefused):
        split_address(text)


def test_controllers() -> None:
    assert parse_controllers("a:1, b:2,a:1,") == ("a:1", "b:2")
    for text in ("", ",", "a:0", ",".join(f"h{i}:1" for i in range(MAX_CONTROLLERS + 1))):
        with pytest.raises(AddressRefused):
            parse_controllers(text)


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LocalHost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "localhost.example", "::", "example.org"))


def test_other_machines_need_insecure() -> None:
    assert require_safe(("127.0.0.1:1", "[::1]:1"), insecure=False, what="x") is None
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1:1.*--insecure"):
        require_safe(("127.0.0.1:1", "10.0.0.1:1"), insecure=False, what="x")
    warning = require_safe(("127.0.0.1:1", "10.0.0.1:1"), insecure=True, what="the controller")
    assert warning is not None and "WARNING" in warning and "10.0.0.1:1" in warning and "127.0.0.1" not in warning
