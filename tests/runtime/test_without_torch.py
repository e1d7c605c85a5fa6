"""Everything but the reference back end works where torch is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = "import sys; sys.modules['torch'] = None\n"

ONE_ANSWER = """
import io, os, struct, threading
from shoal.runtime import wire
from shoal.runtime.service import Service

to_engine, from_agent = os.pipe()
to_agent, from_engine = os.pipe()
service = threading.Thread(target=Service(to_engine, from_engine).run, daemon=True)
service.start()

def send(message):
    os.write(from_agent, wire.encode_frame(message))

frames = os.fdopen(to_agent, "rb")
def receive():
    return wire.from_engine_decoder.decode(frames.read(wire.frame_length(frames.read(4))))

send(wire.Configure(model_dir=sys.argv[1], served_name="m", home=sys.argv[2], options={"context": 64}))
send(wire.Request(request_id="r", prompt=wire.TextPrompt(text="hello"), max_tokens=5, ignore_eos=True))
ids = []
while len(ids) < 5:
    frame = receive()
    if isinstance(frame, wire.Ready):
        assert frame.backend == "cpu", frame
    assert not isinstance(frame, wire.LoadFailed), frame
    if isinstance(frame, wire.OutputBatch):
        ids += [token for output in frame.outputs for token in output.token_ids]
os.close(from_agent)
service.join()
assert not [name for name in sys.modules if name.startswith("torch.")]
"""


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", BLOCKED + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def shoal(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        f"import os; os.environ['SHOAL_HOME'] = {str(home)!r}\nfrom shoal.deploy.cli import main; main()", *arguments
    )


def test_the_engine_service(native_checkpoint: Path, native_home: Path) -> None:
    done = run(ONE_ANSWER, native_checkpoint, native_home)
    assert done.returncode == 0, done.stderr


def test_generate(native_checkpoint: Path, native_home: Path) -> None:
    done = shoal(native_home, "generate", native_checkpoint, "--prompt", "hi", "--max-tokens", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) >= 1


def test_score(native_checkpoint: Path, native_home: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    out = tmp_path / "o.safetensors"
    done = shoal(native_home, "model", "score", native_checkpoint, "--ids", tmp_path / "ids.json", "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.is_file()


@pytest.mark.parametrize("options", [("--backend", "reference"), ("--dtype", "bf16")])
def test_the_reference_back_end_says_what_it_needs(
    native_checkpoint: Path, native_home: Path, options: tuple[str, ...]
) -> None:
    done = shoal(native_home, "generate", native_checkpoint, "--prompt", "hi", *options)
    assert done.returncode == 1
    assert "torch" in done.stderr and done.stderr.count("\n") == 1


def test_a_shape_that_only_the_reference_serves(tiny_checkpoint: Path, native_home: Path) -> None:
    done = shoal(native_home, "generate", tiny_checkpoint, "--prompt", "hi")
    assert done.returncode == 1
    assert "linear_key_head_dim must be a multiple of 16" in done.stderr and "torch" in done.stderr
