"""The committed weights: their layout, the reference implementation's agreement, and the golden answers."""

import json
from collections import Counter

import pytest
import torch
from safetensors import safe_open

from models.pocket.batches import collate
from models.pocket.curriculum import MEASURED
from models.pocket.delta_rule import chunk_length
from models.pocket.export import HERE, read
from models.pocket.golden import LEAST
from models.pocket.tokenizer import Encoder, load

WEIGHTS = HERE / "model.safetensors"
GOLDEN = HERE / "golden.json"
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="no weights in this checkout")


@pytest.fixture(scope="module")
def model():
    return read(HERE)


@pytest.fixture(scope="module")
def reference():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text("utf-8"))


def test_layout():
    with safe_open(WEIGHTS, "pt") as f:
        names = list(f.keys())
        kinds = {n: f.get_slice(n).get_dtype() for n in names}
        assert f.get_slice("model.language_model.embed_tokens.weight").get_shape() == [768, 256]
    exact = {n for n, kind in kinds.items() if kind == "F32"}
    assert exact == {n for n in names if n.endswith(("A_log", "linear_attn.norm.weight"))} and len(exact) == 6
    assert {kinds[n] for n in names if n not in exact} == {"BF16"}
    assert sum(n.startswith("mtp.") for n in names) == 15
    assert all(n.startswith(("mtp.", "model.language_model.")) for n in names)
    assert len(names) == 70 and WEIGHTS.stat().st_size < 12_000_000


@pytest.mark.parametrize("tokens", [1, 65, 300])
def test_equals_the_reference(model, reference, tokens):
    ids = torch.randint(0, 700, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    T, chunk = chunk_length(tokens)
    padded = torch.zeros(1, T, dtype=torch.long)
    padded[:, :tokens] = ids
    with torch.no_grad():
        ours = model.logits(model.hidden(padded, chunk))[:, :tokens]
        theirs = reference(ids).logits
    assert float((ours - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max()))


def test_golden_answers_are_far_from_ties(golden):
    assert len(golden) >= 60
    assert all(g["margin"] >= LEAST for g in golden)
    skills = Counter(g["skill"] for g in golden)
    assert set(MEASURED) - {"tool_use"} <= set(skills)
    assert skills["tool_call"] and skills["tool_use"]
    assert any(len(g["prompt_ids"]) >= 1000 for g in golden if g["skill"] == "memory_1000")
    first = golden[0]
    assert first["messages"] == [{"role": "user", "content": "What is 17 + 25?"}] and "42" in first["text"]


def test_golden_margins_are_those_of_the_weights(model, golden):
    encoder = Encoder(load())
    for g in golden[::2]:
        ids = g["prompt_ids"] + g["ids"]
        assert encoder.tok.decode(g["ids"][:-1], skip_special_tokens=False) == g["text"]
        assert encoder.tok.id_to_token(g["ids"][-1]) == "<|im_end|>"
        batch = collate([(ids, [i >= len(g["prompt_ids"]) for i in range(len(ids))])])
        with torch.no_grad():
            top = model.logits(model.hidden(batch.ids, batch.chunk, batch.select)).topk(2, -1)
        assert top.indices[:, 0].tolist() == g["ids"]
        assert float((top.values[:, 0] - top.values[:, 1]).min()) == pytest.approx(g["margin"], abs=0.01)


def test_golden_prompts_are_the_templates(golden):
    transformers = pytest.importorskip("transformers")
    tok = transformers.PreTrainedTokenizerFast.from_pretrained(HERE)
    for g in golden:
        text = tok.apply_chat_template(
            g["messages"],
            tools=g.get("tools"),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=g["enable_thinking"],
        )
        assert load().encode(text, add_special_tokens=False).ids == g["prompt_ids"]


def test_the_reference_generates_golden_answers(reference, golden):
    short = [g for g in golden if len(g["prompt_ids"]) < 60 and len(g["ids"]) < 20][:4]
    assert short[0]["text"] == "17 + 25 = 42"
    for g in short:
        prompt = torch.tensor([g["prompt_ids"]])
        out = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30)
        assert out[0, prompt.shape[1] :].tolist() == g["ids"]
