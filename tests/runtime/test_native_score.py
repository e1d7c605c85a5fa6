"""`shoal model score` on the native back end: against the reference, cut anywhere, and against what the engine itself says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from engine_driver import ask, run_one  # type: ignore[import-not-found]
from safetensors.numpy import load_file

from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.loading import load_engine
from shoal.runtime.logprobs import log_softmax
from shoal.runtime.model_cli import score
from shoal.runtime.wire import IdsPrompt

Scores = dict[str, npt.NDArray[np.float32]]
IDS = [(7 * i * i + 3) % 256 for i in range(150)]


@pytest.fixture
def scored(native_checkpoint: Path, native_home: Path, tmp_path: Path) -> Callable[..., Scores]:
    def run(*options: str, ids: list[int] = IDS) -> Scores:
        (tmp_path / "ids.json").write_text(json.dumps(ids))
        out = tmp_path / "o.safetensors"
        words = [native_checkpoint, "--ids", tmp_path / "ids.json", "--out", out, *options]
        done = CliRunner().invoke(score, [str(word) for word in words], env={"SHOAL_HOME": str(native_home)})
        assert done.exit_code == 0, done.output
        return dict(load_file(out))

    return run


def test_bf16_weights_give_the_scores_of_the_reference(scored: Callable[..., Scores]) -> None:
    """The same weights; keys, values and products of the native kernels are rounded to bf16, a relative 2^-9 each."""
    ours, theirs = scored("--backend", "cpu"), scored("--backend", "reference")
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].shape == values.shape and ours[name].dtype == np.float32
        assert np.abs(ours[name] - values).max() <= 0.03 * np.abs(values).max(), name


@pytest.mark.parametrize(("format_", "limit"), [("int8", 0.02), ("int4", 0.11)])
def test_quantised_weights_are_near_and_differ(scored: Callable[..., Scores], format_: str, limit: float) -> None:
    """After one product: weights rounded to the format and activations to 8 bits. Random layers then amplify the difference."""
    ours, theirs = scored("--format", format_)["conv.0"], scored("--backend", "reference")["conv.0"]
    error = np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2))
    assert limit / 10 < error < limit


@pytest.mark.parametrize("format_", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("splits", ["1", "15,16,17", "63,64,65,149"])
def test_no_cut_changes_a_bit(scored: Callable[..., Scores], format_: str, splits: str) -> None:
    whole = scored("--backend", "cpu", "--format", format_)
    cut = scored("--backend", "cpu", "--format", format_, "--split", splits)
    for name in whole:
        np.testing.assert_array_equal(cut[name], whole[name], err_msg=name)


def test_one_id(scored: Callable[..., Scores]) -> None:
    got = scored("--backend", "cpu", ids=[5])
    assert got["logits"].shape == (1, 300)
    assert not got["conv.0"][:, :2].any() and got["conv.0"][:, 2].any()


@pytest.mark.parametrize("format_", ["bf16", "int4"])
def test_logprobs_of_the_engine_are_those_of_the_scores(
    scored: Callable[..., Scores], native_checkpoint: Path, native_home: Path, format_: str
) -> None:
    scores = log_softmax(scored("--format", format_, "--backend", "cpu")["logits"])
    options = EngineOptions(backend="cpu", format=format_, parallel=2, context=256, threads=1)
    engine = load_engine(native_checkpoint, options, home=native_home).engine
    request = ask("", max_tokens=1, prompt_logprobs=2, logprobs=2)
    request.prompt = IdsPrompt(token_ids=IDS)
    answer = run_one(engine, request)
    assert answer.prompt is not None
    found = [entry.logprob for entry in answer.prompt.logprobs[1:]] + [answer.logprobs[0].logprob]
    known = load_model_config(native_checkpoint).vocab_size
    drawn = answer.ids[0]
    assert found == [float(scores[i, token]) for i, token in enumerate([*IDS[1:], drawn])]
    assert drawn == int(np.argmax(scores[-1][:known]))
