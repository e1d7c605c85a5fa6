"""Commands that load a model end at once: with their status, everything written, and no farewell of the interpreter."""

import json
import os
import subprocess
import sys

import pytest

MAIN = """
import atexit, os
atexit.register(print, "farewell")
from shoal.deploy.cli import main
main()
"""


def shoal(*arguments, stdout=subprocess.PIPE):
    command = [sys.executable, "-P", "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps([1, 2, 3]))
    return path


def test_what_was_written_is_there(ids):
    done = shoal("generate", "pocket", "--ids", ids, "--max-tokens", "200", "--ignore-eos", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["token_ids"]) == 200


@pytest.mark.parametrize(("arguments", "status"), [(("no-such-model", "--prompt", "a"), 1), (("pocket",), 2)])
def test_failures_keep_their_status(arguments, status):
    done = shoal("generate", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Error: " in done.stderr


def test_other_commands_end_as_usual():
    done = shoal("version")
    assert done.returncode == 0
    assert done.stdout.endswith("farewell\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_output_that_cannot_be_written_is_a_failure(ids):
    with open("/dev/full", "w") as full:
        done = shoal("generate", "pocket", "--ids", ids, "--max-tokens", "2", "--json", stdout=full)
    assert done.returncode != 0
    assert "No space left" in done.stderr
