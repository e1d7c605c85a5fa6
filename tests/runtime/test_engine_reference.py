"""The engine's greedy answers and logprobs against transformers' own model, over the files of one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_driver import ask, run  # type: ignore[import-not-found]
from safetensors.torch import load_file
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.utils import logging

from shoal.runtime.config import EngineOptions
from shoal.runtime.loading import load_engine

logging.set_verbosity_error()  # it speaks of kernels that are not installed

PROMPTS = ["a", "The quick brown fox jumps over the lazy dog. " * 2, "x" * 64]


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Qwen3_5ForCausalLM:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    model = Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(**{key: value for key, value in config.items() if key != "model_type"})
    )
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    wanted = model.state_dict()
    model.load_state_dict({name: tensors[name] for name in wanted}, strict=True)
    return model.float().eval()


def test_greedy_answers_of_a_batch_are_those_of_transformers(
    tiny_checkpoint: Path, reference: Qwen3_5ForCausalLM
) -> None:
    options = EngineOptions(parallel=2, context=256, block_tokens=4, max_batched_tokens=24, threads=1)
    requests = [ask(text, text[:1], max_tokens=24, logprobs=3) for text in PROMPTS]
    answers = run(load_engine(tiny_checkpoint, options).engine, *requests)
    for text in PROMPTS:
        one = answers[text[:1], 0]
        ids = list(text.encode())
        for entry in one.logprobs:
            with torch.no_grad():
                scores = torch.log_softmax(reference(torch.tensor([ids]), use_cache=False).logits[0, -1], dim=-1)
            assert entry.token_id == int(scores.argmax())
            assert entry.logprob == pytest.approx(float(scores[entry.token_id]), abs=1e-4)
            assert [top.token_id for top in entry.top] == scores.topk(3).indices.tolist()
            ids.append(entry.token_id)
        assert one.ids == ids[len(text) :]
