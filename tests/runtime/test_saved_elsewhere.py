"""Directories that transformers writes itself, of every class of the family, load and compute the same."""

import pytest
import torch
from transformers import (
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
)
from transformers.utils import logging

from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, load_model_config
from shoal.runtime.errors import TensorMissing
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory
from shoal.runtime.synth import synthesise

torch.set_num_threads(1)
logging.set_verbosity_error()
logging.disable_progress_bar()

SIZES = {
    "vocab_size": 300,
    "hidden_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 20,
    "max_position_embeddings": 512,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 2, 1],
    },
}
DENSE = SIZES | {"intermediate_size": 56}
SPARSE = SIZES | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 40,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
IDS = list(range(70))


def whole(config_type, text, tied):
    return config_type(
        text_config={**text, "tie_word_embeddings": tied}, vision_config=VISION, tie_word_embeddings=tied
    )


MAKERS = {
    "dense, whole": lambda tied: Qwen3_5ForConditionalGeneration(whole(Qwen3_5Config, DENSE, tied)),
    "dense, text": lambda tied: Qwen3_5ForCausalLM(Qwen3_5TextConfig(**DENSE, tie_word_embeddings=tied)),
    "sparse, whole": lambda tied: Qwen3_5MoeForConditionalGeneration(whole(Qwen3_5MoeConfig, SPARSE, tied)),
    "sparse, text": lambda tied: Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**SPARSE, tie_word_embeddings=tied)),
}


def saved(model, directory, **kwargs):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            p.add_(0.2 * noise) if "norm" in name else p.copy_(0.1 * noise)
    model.eval().save_pretrained(directory, **kwargs)
    return directory


def load(directory):
    config = load_model_config(directory)
    return HybridModel.load(directory, config, EngineOptions())


def logits(model):
    plan = plan_memory(model.config, EngineOptions(context=128, parallel=1))
    row = Row(len(IDS), 0, tuple(range(plan.num_blocks)), 0)
    cache = HybridCache.allocate(model.config, plan)
    return model.forward(Batch(IDS, [row], list(range(len(IDS)))), cache)


@torch.no_grad()
def reference(model):
    return model(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", MAKERS)
def test_it_loads_and_computes_the_same(kind, tied, tmp_path):
    theirs = MAKERS[kind](tied)
    ours = load(saved(theirs, tmp_path))
    assert (logits(ours) - reference(theirs)).abs().max() < 1e-4
    assert ours.skipped == ({"visual": 2 * 12 + 9} if "whole" in kind else {})
    assert ours.config.dropped_keys == () and ours.config.tie_word_embeddings == tied


def test_shards_as_it_cuts_them(tmp_path):
    theirs = MAKERS["dense, text"](False)
    ours = load(saved(theirs, tmp_path, max_shard_size="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (logits(ours) - reference(theirs)).abs().max() < 1e-4


def test_one_expert_short(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(MAKERS["sparse, text"](False), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if ".experts.3.up_proj" in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TensorMissing, match=r"experts\.3\.up_proj"):
        load(tmp_path)


def test_experts_as_published_and_a_block_of_prediction_whose_experts_are_apart(tmp_path):
    """Our random sparse checkpoint keeps the published layout: fused experts in the trunk, one by one in the MTP block."""
    content = {
        "model_type": "qwen3_5_moe",
        "text_config": {**SPARSE, "model_type": "qwen3_5_moe_text", "mtp_num_hidden_layers": 1},
        "tie_word_embeddings": False,
    }
    synthesise(content, tmp_path / "model")
    ours = load(tmp_path / "model")
    assert ours.skipped == {"mtp": 4 + 2 + 6 + 2 + 3 + 3 * 4}  # own, norms, attention, gates, shared, experts
    theirs = Qwen3_5MoeForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(ours), reference(theirs), rtol=1e-3, atol=2e-4)
