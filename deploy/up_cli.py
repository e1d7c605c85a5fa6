"""`shoal up`: the main job on embedded defaults."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from .ask import AskFailed, ask
from .config_file import shoal_home
from .up import UpConfig, UpFailed, default_threads, run_fleet

EXAMPLE = "What is 17 + 25?"
ONCE_TIMEOUT_S = 300.0
HTTP_DEFAULT, GRPC_DEFAULT = "127.0.0.1:8080", "127.0.0.1:9090"

ENGINE_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    # Written out, since no other part may be imported here; a test holds the choices to the engine's.
    ("--backend", {"type": click.Choice(["auto", "reference", "cpu"]), "help": "What computes.  [default: auto]"}),
    (
        "--dtype",
        {"type": click.Choice(["f32", "bf16"]), "help": "Arithmetic of the reference back end.  [default: f32]"},
    ),
    (
        "--format",
        {
            "type": click.Choice(["auto", "bf16", "int8", "int4"]),
            "help": "Weights as served; published ones are converted once.  [default: auto]",
        },
    ),
    (
        "--kv-format",
        {
            "type": click.Choice(["auto", "bf16", "int8", "f32"]),
            "help": "Keys and values in the cache.  [default: auto]",
        },
    ),
    ("--context", {"type": click.IntRange(min=1), "help": "Tokens of prompt and answer together."}),
    ("--parallel", {"type": click.IntRange(min=1), "help": "Sequences decoded side by side on each agent."}),
    ("--threads", {"type": click.IntRange(min=1), "help": "Threads of each engine; several agents share the cores."}),
    ("--memory", {"type": str, "help": "Budget of each agent, for example 4GiB.  [default: what the machine has]"}),
    (
        "--isa",
        {
            "type": click.Choice(["auto", "scalar", "avx2", "avxvnni", "avx512"]),
            "help": "Instruction set of the native kernels, for tests.  [default: auto]",
        },
    ),
)


def _with_engine_options(command: Any) -> Any:
    for flag, settings in reversed(ENGINE_OPTIONS):
        command = click.option(flag, **settings)(command)
    return command


def _served_model(name: str) -> str:
    """A directory as an absolute path, so that it means the same to every child; a name as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


@click.command()
@click.option(
    "--model", "models", multiple=True, metavar="NAME|DIR", help="What to serve; repeatable.  [default: pocket]"
)
@click.option("--agents", type=click.IntRange(1, 64), default=1, show_default=True, help="Agents to start.")
@click.option(
    "--http", metavar="HOST:PORT", help=f"HTTP API and console; port 0 takes a free one.  [default: {HTTP_DEFAULT}]"
)
@click.option("--grpc", metavar="HOST:PORT", help=f"gRPC for agents and clients.  [default: {GRPC_DEFAULT}]")
@click.option(
    "--once", metavar="TEXT", help="Answer this, print the answer, end. Takes free ports unless told otherwise."
)
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Write addresses and process ids here."
)
@click.option("--insecure", is_flag=True, help="Allow addresses other than loopback without TLS.")
@_with_engine_options
def up(
    models: tuple[str, ...],
    agents: int,
    http: str | None,
    grpc: str | None,
    once: str | None,
    ready_file: Path | None,
    insecure: bool,
    **engine: Any,
) -> None:
    """Run a whole fleet on this machine: a controller, agents, the OpenAI and gRPC APIs and the console.

    Ctrl-C ends everything.
    """
    free = "127.0.0.1:0" if once is not None else None
    if agents > 1:
        engine["threads"] = engine["threads"] or default_threads(agents)
    config = UpConfig(
        http=http or free or HTTP_DEFAULT,
        grpc=grpc or free or GRPC_DEFAULT,
        models=tuple(_served_model(name) for name in models) or ("pocket",),
        num_agents=agents,
        home=shoal_home(),
        engine_args=tuple(
            word
            for name, value in engine.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", str(value))
        ),
        ready_file=ready_file,
        insecure=insecure,
    )

    async def serve(ready: dict[str, Any]) -> None:
        if once is None:
            click.echo(_banner(ready))
            await asyncio.Event().wait()
        else:
            click.echo(await asyncio.to_thread(ask, ready["http"], once, timeout_s=ONCE_TIMEOUT_S))

    try:
        asyncio.run(run_fleet(config, serve, lambda line: click.echo(line, err=True)))
    except (UpFailed, AskFailed) as failed:
        message = str(failed)
        if "in use" in message:
            message += " (--http 127.0.0.1:0 --grpc 127.0.0.1:0 take free ports)"
        raise click.ClickException(message) from None


def _banner(ready: dict[str, Any]) -> str:
    """What a first user needs: the addresses, a line for the shell and one for Python."""
    url, models = ready["http"], sorted({agent["model"] for agent in ready["agents"]})
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": EXAMPLE}]})
    return f"""shoal is up: {len(ready["agents"])} agent(s) serve {", ".join(models)}

  OpenAI API  {url}/v1
  console     {url}/console
  gRPC        {ready["grpc"]}

From the shell:
  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

From Python (pip install openai):
  python -c "from openai import OpenAI; c = OpenAI(base_url='{url}/v1', api_key='-'); print(c.chat.completions.create(\
model='auto', messages=[{{'role': 'user', 'content': '{EXAMPLE}'}}]).choices[0].message.content)"

Ctrl-C ends it."""
