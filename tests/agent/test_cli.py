"""The commands: words in, one line and an exit status out."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from shoal.agent import cli

from .tiny_models import write_tiny


def invoke(*words: str) -> tuple[int, str, str]:
    command = {"agent": cli.agent, "explain": cli.explain, "list": cli.model_list, "pull": cli.model_pull}[words[0]]
    result = CliRunner().invoke(command, list(words[1:]))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "--controller"),
        (("--controller", "nonsense"), 1, "nonsense"),
        (("--controller", "10.1.2.3:9090"), 1, "--insecure"),
        (("--controller", "127.0.0.1:1", "--metrics", "0.0.0.0:0"), 1, "--insecure"),
        (("--controller", "127.0.0.1:1", "--id", "a/b"), 2, "--id"),
        (("--controller", "127.0.0.1:1", "--memory", "lots"), 2, "4GiB"),
        (("--controller", "127.0.0.1:1", "--backend", "quantum"), 2, "--backend"),
        (("--controller", "127.0.0.1:1", "--parallel", "0"), 2, "--parallel"),
        (("--controller", "127.0.0.1:1", "--model", "nothing"), 1, "nothing"),
    ],
)
def test_run_refuses(words: tuple[str, ...], status: int, message: str, tmp_path: Path) -> None:
    code, _, err = invoke("agent", "run", "--home", str(tmp_path), *words)
    assert code == status and message in err


def test_run_refuses_what_does_not_fit(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "m", 64)
    words = ("agent", "run", "--home", str(tmp_path), "--controller", "127.0.0.1:1")
    code, _, err = invoke(*words, "--model", str(model), "--memory", "1MiB")
    assert code == 1 and "1,048,576 bytes (--memory)" in err and "m: needs" in err


def test_run_says_loudly_that_there_is_no_tls(tmp_path: Path) -> None:
    words = (
        "agent",
        "run",
        "--home",
        str(tmp_path),
        "--controller",
        "10.1.2.3:9090",
        "--insecure",
        "--model",
        "nothing",
    )
    code, _, err = invoke(*words)
    assert code == 1 and "WARNING" in err and "10.1.2.3:9090" in err


def test_explain(tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "mine", 64)
    code, out, _ = invoke("explain", "--home", str(tmp_path), "--memory", "1GiB", "--model", "mine", "--json")
    content = json.loads(out)
    assert code == 0 and content["chosen"]["name"] == "mine" and content["budget"]["bytes"] == 1 << 30
    code, out, _ = invoke("explain", "--home", str(tmp_path), "--memory", "1GiB", "--model", "mine")
    assert code == 0 and "would serve   mine" in out
    code, _, err = invoke("explain", "--home", str(tmp_path), "--model", "absent")
    assert code == 1 and "absent" in err


def test_list(tmp_path: Path) -> None:
    code, out, _ = invoke("list", "--home", str(tmp_path), "--json")
    assert code == 0 and {"qwen3.5-0.8b", "qwen3.5-27b"} <= {row["name"] for row in json.loads(out)}
    assert invoke("list", "--home", str(tmp_path))[1].startswith("NAME")


def test_pull_refuses(tmp_path: Path) -> None:
    code, _, err = invoke("pull", "nonsense", "--home", str(tmp_path))
    assert code == 1 and "qwen3.5-0.8b" in err
    code, _, err = invoke("pull", "a/b", "--source", "modelscope", "--home", str(tmp_path))
    assert code == 1 and "huggingface" in err
    assert invoke("pull", "pocket", "--home", str(tmp_path))[0] == 0


def test_the_identity_is_made_up_before_anything_can_fail(tmp_path: Path) -> None:
    invoke("agent", "run", "--home", str(tmp_path), "--controller", "127.0.0.1:1", "--model", "nothing")
    assert json.loads((tmp_path / "identity" / "agent.json").read_text())["id"]


@pytest.mark.parametrize("command", [cli.agent, cli.explain, cli.model_list, cli.model_pull])
def test_parameters_are_named_like_their_options(command: click.Command) -> None:
    """Environment variables and configuration keys are made from the parameter's name."""
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for one in commands:
        for parameter in one.params:
            if isinstance(parameter, click.Option):
                assert f"--{parameter.name.replace('_', '-')}" in parameter.opts


def test_options_from_the_environment(tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "mine", 64)
    environment = {"SHOAL_EXPLAIN_MEMORY": "1GiB", "SHOAL_EXPLAIN_MODEL": "mine", "SHOAL_EXPLAIN_HOME": str(tmp_path)}
    result = CliRunner(env=environment).invoke(cli.explain, ["--json"], auto_envvar_prefix="SHOAL_EXPLAIN")
    content = json.loads(result.stdout)
    assert content["chosen"]["name"] == "mine" and content["budget"]["bytes"] == 1 << 30
