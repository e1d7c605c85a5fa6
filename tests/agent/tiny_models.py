"""Directories with a config.json of the real shape and little else: enough for planning, not for an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def tiny_config(hidden_size: int, num_layers: int = 4) -> dict[str, Any]:
    layer_types = ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(num_layers)]
    text = {
        "model_type": "qwen3_5_text",
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "vocab_size": 1024,
        "num_hidden_layers": num_layers,
        "layer_types": layer_types,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    }
    return {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": True}


def write_tiny(directory: Path, hidden_size: int, num_layers: int = 4) -> Path:
    """A folder that the store lists: the config, and a weight file that nobody opens."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(tiny_config(hidden_size, num_layers)))
    (directory / "model.safetensors").write_bytes(b"x" * hidden_size)
    return directory
