"""Addresses, and what may be served without TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from shoal.controller.cli import controller
from shoal.controller.config import Address, ConfigInvalid, ControllerConfig, parse_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8080", "127.0.0.1", 8080), ("[::1]:0", "::1", 0), ("localhost:65535", "localhost", 65535)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "h:-1", "h:٣", "[h]:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigInvalid):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box", False),
    ],
)
def test_what_stays_on_the_machine(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback is is_loopback


def config(**fields: object) -> ControllerConfig:
    here = Address("127.0.0.1", 0)
    return ControllerConfig(**({"http": here, "grpc": here, "home": Path("x")} | fields))  # type: ignore[arg-type]


def test_an_address_that_others_reach_needs_insecure() -> None:
    config().check()
    open_grpc = Address("0.0.0.0", 9090)
    with pytest.raises(ConfigInvalid, match=r"0\.0\.0\.0:9090.*--insecure"):
        config(grpc=open_grpc).check()
    config(grpc=open_grpc, insecure=True).check()


@pytest.mark.parametrize(
    "arguments", [["--http", "nonsense"], ["--grpc", "0.0.0.0:1"], ["--http", "[::]:1"], ["--no-such-flag"]]
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(controller, ["run", "--home", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.output and not list(tmp_path.iterdir())
