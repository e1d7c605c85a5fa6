"""Two windows into the served numbers, both of real processes, for each weight format of the native back end: `shoal model score`,
and `echo` with logprobs over HTTP from a fleet that computes many prompts at once. They must tell the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from shoal_e2e_fleet import Fleet, running_fleet  # type: ignore[import-not-found]

from shoal.kernels.cpu import best_isa

pytestmark = pytest.mark.e2e

POCKET = Path(__file__).parents[2] / "models" / "pocket"
LENGTHS = (2, 63, 64, 65, 150)
NUM_DRAWN = 6
TOLERANCE = 1e-5
"""The logits are the same to the bit; their softmax is taken in f32 there and in f64 here, and a logprob of 20 has a last place of
2e-6."""


@dataclass(frozen=True)
class Served:
    """A fleet and the format that it serves pocket in."""

    fleet: Fleet
    format: str

    def complete(self, ids: list[int], **fields: Any) -> dict[str, Any]:
        body = {"model": "auto", "prompt": ids, "echo": True, "logprobs": 2, "temperature": 0} | fields
        with self.fleet.client() as client:
            answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    def tell(self, *words: str) -> Any:
        """What a command of `shoal` prints as JSON, with this fleet's folder and format."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "shoal.deploy", *words],
            env=os.environ | {"SHOAL_HOME": str(self.fleet.home)},
            capture_output=True,
            check=True,
            timeout=100,
        )
        return json.loads(done.stdout)

    def scores(self, ids: list[int], folder: Path) -> np.ndarray:
        """Log-softmax of the scored logits, [T, V] f64."""
        (folder / "ids.json").write_text(json.dumps(ids))
        arguments = ["--ids", folder / "ids.json", "--out", folder / "o.safetensors", "--backend", "cpu"]
        subprocess.run(
            [sys.executable, "-P", "-m", "shoal.deploy", "model", "score", POCKET, *arguments, "--format", self.format],
            env=os.environ | {"SHOAL_HOME": str(self.fleet.home)},
            check=True,
            timeout=100,
        )
        logits = load_file(folder / "o.safetensors")["logits"].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.fixture(scope="module", params=["bf16", "int8", "int4"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served") / "home"
    with running_fleet(home, "--model", str(POCKET), "--backend", "cpu", "--format", request.param) as fleet:
        yield Served(fleet, request.param)


def ids_of(length: int) -> list[int]:
    draw = random.Random(length)
    return [draw.randrange(256) for _ in range(length)]


def assert_agree(logprobs: dict[str, Any], ids: list[int], scores: np.ndarray) -> None:
    """What HTTP said of `ids` against the scores of each after those before it."""
    told = logprobs["token_logprobs"]
    assert len(told) == len(ids) and told[0] is None
    expected = [scores[at - 1, ids[at]] for at in range(1, len(ids))]
    assert told[1:] == pytest.approx(expected, abs=TOLERANCE)
    for at in range(1, len(ids)):
        best = np.sort(scores[at - 1])[::-1][:2]
        # The token itself is among them where it is not one of the best.
        assert sorted(logprobs["top_logprobs"][at].values())[::-1][:2] == pytest.approx(best.tolist(), abs=TOLERANCE)


def test_echo_of_prompts_in_one_batch_equals_the_score(served: Served, tmp_path: Path) -> None:
    answers: dict[int, dict[str, Any]] = {}

    def ask(length: int) -> None:
        answers[length] = served.complete(ids_of(length), max_tokens=0)

    threads = [threading.Thread(target=ask, args=(length,)) for length in LENGTHS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(LENGTHS)
    for length in LENGTHS[1::2]:
        assert_agree(answers[length]["logprobs"], ids_of(length), served.scores(ids_of(length), tmp_path))


def test_an_answer_equals_its_score(served: Served, tmp_path: Path) -> None:
    """Decoded a token at a time there, read in one piece here."""
    prompt = ids_of(40)
    choice = served.complete(prompt, max_tokens=NUM_DRAWN, ignore_eos=True, return_token_ids=True)
    drawn = choice["token_ids"]
    assert len(drawn) == NUM_DRAWN
    scores = served.scores(prompt + drawn, tmp_path)
    assert_agree(choice["logprobs"], prompt + drawn, scores)


def test_the_node_says_what_explain_foretold(served: Served) -> None:
    """Back end, weight format and instruction set: of the selection, of the engine, and as administrators see them."""
    words = ("--model", str(POCKET), "--backend", "cpu", "--format", served.format, "--json")
    plan = served.tell("explain", *words)["chosen"]["plan"]
    (node,) = served.tell("node", "list", "--http", served.fleet.url, "--json")
    assert served.tell("node", "show", node["id"], "--http", served.fleet.url)["isa"] == node["isa"]
    told = [(facts["backend"], facts["format"], facts["isa"]) for facts in (plan, node)]
    assert told == [("cpu", served.format, best_isa())] * 2
    table = subprocess.run(
        [sys.executable, "-P", "-m", "shoal.deploy", "node", "list", "--http", served.fleet.url],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    assert f"{served.format} cpu {best_isa()}" in " ".join(table.split())
