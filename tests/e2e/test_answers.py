"""Questions answered by a fleet, over HTTP, with real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from shoal_e2e_fleet import Fleet, stream_events  # type: ignore[import-not-found]

pytestmark = pytest.mark.e2e

POCKET = Path(str(files("shoal"))) / "models" / "pocket"


def pocket_dir() -> Path:
    """The packaged model, in the checkout of an editable install."""
    here = Path(__file__).parents[2] / "models" / "pocket"
    return here if here.is_dir() else POCKET


def up_once(home: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "shoal.deploy", "up", "--once", text, *arguments],
        env=os.environ | {"SHOAL_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_once_prints_the_answer_and_ends_with_zero(tmp_path: Path) -> None:
    done = up_once(tmp_path, "What is 17 + 25?")
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout


def test_other_sums_are_right(fleet: Fleet) -> None:
    draw = random.Random(20261124)
    right = 0
    with fleet.client() as client:
        for _ in range(20):
            a, b = draw.randint(1, 99), draw.randint(1, 99)
            body = {"messages": [{"role": "user", "content": f"What is {a} + {b}?"}], "model": "auto", "temperature": 0}
            text = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            right += str(a + b) in text
    assert right >= 19


def test_a_zeroed_tensor_spoils_the_answer(tmp_path: Path) -> None:
    source, copy = pocket_dir(), tmp_path / "spoilt"
    copy.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            (copy / file.name).write_bytes(file.read_bytes())
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = load_torch(source / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("layers.3.mlp.down_proj.weight"))
    tensors[name] = torch.zeros_like(tensors[name])
    save_torch(tensors, copy / "model.safetensors")
    done = up_once(tmp_path / "home", "What is 17 + 25?", "--model", str(copy))
    assert done.returncode == 0, done.stderr
    assert "42" not in done.stdout


def test_twenty_concurrent_streams_equal_each_alone(fleet: Fleet) -> None:
    prompts = [f"Reverse the word {word}." for word in ("shoal", "planet", "garden", "silver", "window")]
    prompts += [f"What is {a} + {b}?" for a, b in ((17, 25), (31, 44), (8, 9), (60, 12), (23, 5))]
    prompts = prompts * 2

    def body(prompt: str) -> dict[str, Any]:
        return {"model": "auto", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 40}

    def text_of(events: list[tuple[float, dict[str, Any] | None]]) -> str:
        chunks = [event for _, event in events if event is not None]
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])

    with fleet.client() as client:
        alone = {
            prompt: client.post("/v1/chat/completions", json=body(prompt)).json()["choices"][0]["message"]["content"]
            for prompt in set(prompts)
        }
    before = _requests_by_node(fleet)
    results: dict[int, list[tuple[float, dict[str, Any] | None]]] = {}
    starts: dict[int, float] = {}

    def run(index: int) -> None:
        with fleet.client() as client:
            starts[index] = time.monotonic()
            results[index] = list(stream_events(client, "/v1/chat/completions", body(prompts[index])))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text_of(results[index]) for index in range(20)] == [alone[prompt] for prompt in prompts]
    for index, events in results.items():
        assert events[-1][1] is None
        assert len(events) >= 3, f"stream {index} came in {len(events)} events"
    after = _requests_by_node(fleet)
    counted = {node: after[node] - before.get(node, 0) for node in after}
    assert sum(counted.values()) == 20
    assert all(value > 0 for value in counted.values()) and len(counted) == 2


def _requests_by_node(fleet: Fleet) -> dict[str, float]:
    counts: dict[str, float] = {}
    for name, labels, value in fleet.samples():
        if name == "shoal_requests_total":
            counts[labels["node"]] = counts.get(labels["node"], 0) + value
    return counts


def test_a_long_stream_is_spread_over_its_time(fleet: Fleet) -> None:
    body = {"model": "auto", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "temperature": 0}
    with fleet.client() as client:
        start = time.monotonic()
        times = [at for at, event in stream_events(client, "/v1/completions", body) if event is not None]
        end = time.monotonic()
    assert len(times) >= 10
    assert times[-1] - times[0] > 0.5 * (end - start)


def test_stream_and_no_stream_agree_in_text_ids_and_logprobs(fleet: Fleet) -> None:
    body = {
        "model": "auto", "messages": [{"role": "user", "content": "Reverse the word planet."}], "temperature": 0.7,
        "seed": 7, "max_tokens": 30, "logprobs": True, "top_logprobs": 3, "return_token_ids": True,
    }  # fmt: skip
    with fleet.client() as client:
        whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]
        events = [event for _, event in stream_events(client, "/v1/chat/completions", body) if event is not None]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == whole["message"]["content"]
    assert [i for choice in choices for i in choice.get("token_ids") or []] == whole["token_ids"]
    streamed = [entry for choice in choices for entry in (choice.get("logprobs") or {}).get("content") or []]
    assert streamed == whole["logprobs"]["content"]
    assert len(streamed) == len(whole["token_ids"])


def test_echo_logprobs_equal_the_score(fleet: Fleet, tmp_path: Path) -> None:
    ids = [int(token) for token in random.Random(3).sample(range(256), 70)]
    with fleet.client() as client:
        body = {"model": "auto", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
        logprobs = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "shoal.deploy",
            "model",
            "score",
            str(pocket_dir()),
            "--ids",
            str(tmp_path / "ids.json"),
            "--out",
            str(tmp_path / "out.safetensors"),
            "--backend",
            os.environ.get("SHOAL_UP_BACKEND", "auto"),  # the fleet's: others round differently
        ],
        check=True,
        timeout=100,
    )
    import numpy as np

    logits = load_file(tmp_path / "out.safetensors")["logits"].astype(np.float64)
    expected = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    assert logprobs[0] is None
    for index in range(1, len(ids)):
        assert logprobs[index] == pytest.approx(expected[index - 1, ids[index]], abs=1e-4)


def test_prompts_and_answers_are_written_nowhere(fleet: Fleet) -> None:
    canary = "xqzvkanarienvogel"
    with fleet.client() as client:
        for path, body in (
            (
                "/v1/chat/completions",
                {"model": "auto", "messages": [{"role": "user", "content": f"Reverse {canary}."}]},
            ),
            ("/v1/completions", {"model": "auto", "prompt": canary, "max_tokens": 5}),
            ("/v1/completions", {"model": "auto", "prompt": canary * 4000, "max_tokens": 5}),
            ("/v1/chat/completions", {"model": "auto", "messages": [{"role": canary, "content": canary}]}),
            ("/tokenize", {"model": "auto", "prompt": canary}),
        ):
            client.post(path, json=body)
        assert canary not in client.get("/admin/v1/requests").text
        assert canary not in client.get("/metrics").text
    assert canary not in fleet.everything_written()
