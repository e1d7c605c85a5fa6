"""What a start waits for, and what it does without: a process that answers imports and builds only what its prompt needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.runtime.loading import Reads, load_engine
from shoal.runtime.options import EngineOptions
from shoal.runtime.text_errors import TemplateInvalid
from shoal.runtime.wire import Conversation, IdsPrompt, Request, TextPrompt

HEAVY = ("torch", "jinja2", "tokenizers", "email", "asyncio", "grpc", "shoal.runtime.convert")
GENERATE = f"""
import sys
from shoal.deploy.cli import root
try:
    root.main(prog_name="shoal")
finally:
    sys.stderr.write(" ".join(name for name in {HEAVY!r} if name in sys.modules))
"""
OPTIONS = EngineOptions(backend="cpu", context=64, parallel=1, threads=1)


def imported(home: Path, *arguments: str | Path) -> list[str]:
    """Of HEAVY, what `shoal generate` has imported when it ends."""
    code = f"import os; os.environ['SHOAL_HOME'] = {str(home)!r}\n{GENERATE}"
    command = [
        sys.executable,
        "-P",
        "-c",
        code,
        "generate",
        *map(str, arguments),
        "--json",
        "--max-tokens",
        "2",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def test_a_prompt_of_ids_needs_no_tokenizer(native_checkpoint: Path, native_home: Path, tmp_path: Path) -> None:
    load_engine(native_checkpoint, OPTIONS, home=native_home)  # converted by now
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    assert imported(native_home, native_checkpoint, "--ids", tmp_path / "ids.json") == []


def test_text_needs_no_template(native_checkpoint: Path, native_home: Path) -> None:
    load_engine(native_checkpoint, OPTIONS, home=native_home)
    assert imported(native_home, native_checkpoint, "--prompt", "hi") == ["tokenizers"]
    assert imported(native_home, native_checkpoint, "--chat", "hi") == ["jinja2", "tokenizers"]


@pytest.mark.parametrize("reads", list(Reads))
def test_whatever_is_ready_at_once_every_prompt_is_read(
    native_checkpoint: Path, native_home: Path, reads: Reads
) -> None:
    loaded = load_engine(native_checkpoint, OPTIONS, home=native_home, reads=reads)
    messages = json.dumps([{"role": "user", "content": "hi"}]).encode()
    for prompt in (IdsPrompt([1, 2]), TextPrompt("hi"), Conversation(messages)):
        loaded.engine.add(Request(request_id="r", prompt=prompt, max_tokens=1, ignore_eos=True))
        while loaded.engine.has_work:
            assert all(output.finish is None or output.finish.error is None for output in loaded.engine.step())
    assert loaded.has_template


def test_a_broken_template_is_told_at_once_where_conversations_are_read(
    native_checkpoint: Path, native_home: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(native_checkpoint, broken)
    (broken / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(TemplateInvalid):
        load_engine(broken, OPTIONS, home=native_home)
    loaded = load_engine(broken, OPTIONS, home=native_home, reads=Reads.TEXT)
    messages = json.dumps([{"role": "user", "content": "hi"}]).encode()
    with pytest.raises(TemplateInvalid):
        loaded.engine.add(Request(request_id="r", prompt=Conversation(messages), max_tokens=1))
