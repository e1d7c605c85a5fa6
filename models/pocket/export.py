"""Writes a checkpoint as a published model folder: config, tokenizer, template and bf16 weights.

    python -m models.pocket.export --checkpoint runs/pocket/checkpoint.pt --out DIR

Tensor names and types are those of the family's published files: ``model.language_model.`` for the trunk,
``mtp.`` for the draft block, no ``lm_head.weight`` (tied), ``A_log`` and ``linear_attn.norm.weight`` F32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.pocket.delta_rule import Shape
from models.pocket.model import Pocket
from models.pocket.tokenizer import ADDED, load

HERE = Path(__file__).resolve().parent
PREFIX = "model.language_model."
CONTEXT = 8192
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def config(s: Shape) -> dict[str, Any]:
    """``config.json`` in the nested layout of the family, without a vision part."""
    tok = load()
    ids = {t: tok.token_to_id(t) for t in ADDED}
    full = [(i + 1) % s.interval == 0 for i in range(s.layers)]
    text = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": ids["<|endoftext|>"],
        "full_attention_interval": s.interval,
        "head_dim": s.attn_head,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "intermediate_size": s.ffn,
        "layer_types": ["full_attention" if f else "linear_attention" for f in full],
        "linear_conv_kernel_dim": s.conv,
        "linear_key_head_dim": s.head,
        "linear_num_key_heads": s.key_heads,
        "linear_num_value_heads": s.value_heads,
        "linear_value_head_dim": s.head,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": CONTEXT,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": s.q_heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": s.rotary / s.attn_head,
            "rope_theta": int(s.theta),
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": s.vocab,
    }
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_5",
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video_pad|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def generation_config() -> dict[str, Any]:
    """Greedy decoding, because every prompt of the curriculum has one right answer."""
    tok = load()
    end, pad = tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")
    return {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad, "max_new_tokens": 512}


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by their published names and types."""
    out = {}
    for name, w in state.items():
        exact = name.endswith(("A_log", "linear_attn.norm.weight"))
        target = name if name.startswith("mtp.") else PREFIX + name
        out[target] = w.detach().to(torch.float32 if exact else torch.bfloat16).contiguous()
    return dict(sorted(out.items()))


def read(folder: Path, precision: str = "f32") -> Pocket:
    """The model of an exported folder, in fp32 parameters."""
    model = Pocket(Shape(), precision)
    tensors = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({n.removeprefix(PREFIX): w.float() for n, w in tensors.items()})
    return model


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(state: dict[str, Tensor], out: Path) -> None:
    """Write the folder ``out``; weights appear whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if out.resolve() != HERE:
            shutil.copyfile(HERE / name, out / name)
    write_json(out / "config.json", config(Shape()))
    write_json(out / "generation_config.json", generation_config())
    temporary = out / "model.safetensors.tmp"
    save_file(published(state), str(temporary), metadata={"format": "pt"})
    os.replace(temporary, out / "model.safetensors")


def main() -> None:
    p = argparse.ArgumentParser(description="Export a checkpoint of pocket.")
    p.add_argument("--checkpoint", default="runs/pocket/checkpoint.pt")
    p.add_argument("--out", default=str(HERE))
    args = p.parse_args()
    kept = torch.load(args.checkpoint, weights_only=True)
    write(kept["model"], Path(args.out))
    size = (Path(args.out) / "model.safetensors").stat().st_size
    print(f"step {kept['step']}, {kept['tokens']} tokens, {size} bytes -> {args.out}")


if __name__ == "__main__":
    main()
