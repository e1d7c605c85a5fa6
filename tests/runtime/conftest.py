"""A tiny tokenizer of the family's kind, the published chat templates, and an independent library to compare with."""

import importlib.util
import sys
from pathlib import Path

import pytest

from shoal.runtime.chat_template import ChatTemplate
from shoal.runtime.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TEMPLATES = sorted((FIXTURES / "templates").glob("*.jinja"))


def _fixture_module(name):
    """A module of tests/fixtures; the root is not on the path, or it would hide packages that are named like ours."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FIXTURES / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_fixture_module("engine_driver")  # test modules import it by this name


@pytest.fixture(scope="session")
def write_tiny_tokenizer():
    return _fixture_module("tiny_tokenizer").write_tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, write_tiny_tokenizer):
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tiny_dir):
    return Tokenizer.load(tiny_dir)


@pytest.fixture(scope="session")
def flagged_tokenizer(tmp_path_factory, write_tiny_tokenizer):
    """The same with `<think>`, `<tool_call>`, ... flagged special."""
    directory = tmp_path_factory.mktemp("flagged")
    write_tiny_tokenizer(directory, markers_special=True)
    return Tokenizer.load(directory)


@pytest.fixture(scope="session")
def reference(tiny_dir):
    """transformers' tokenizer over the same files."""
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(tiny_dir)


@pytest.fixture(scope="session", params=TEMPLATES, ids=lambda path: path.name.split(".", 1)[1].removesuffix(".jinja"))
def template(request, tokenizer):
    """Each published template in turn, compiled."""
    return ChatTemplate(request.param.read_text(encoding="utf-8"), tokenizer)


@pytest.fixture(scope="session")
def template_35(tokenizer):
    """The template of Qwen3.5-4B and larger."""
    source = (FIXTURES / "templates" / "chat_template.qwen3.5.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, tokenizer)


TINY_TEXT_CONFIG = {
    "model_type": "qwen3_5_text",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": False,
    "vocab_size": 300,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A random checkpoint of four layers, both kinds, with a byte-level tokenizer and the published template."""
    from shoal.runtime.synth import synthesise

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny-random"
    synthesise(TINY_TEXT_CONFIG, directory, seed=5)
    return directory


NATIVE_TEXT_CONFIG = TINY_TEXT_CONFIG | {
    "hidden_size": 80,
    "intermediate_size": 104,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
    "max_position_embeddings": 1024,
}
"""Odd where the native kernels allow it."""


@pytest.fixture(scope="session")
def native_checkpoint(tmp_path_factory):
    """The same of a shape that the native back end serves."""
    from shoal.runtime.synth import synthesise

    directory = tmp_path_factory.mktemp("checkpoint") / "tiny-native"
    synthesise(NATIVE_TEXT_CONFIG, directory, seed=5)
    return directory


@pytest.fixture(scope="session")
def native_home(tmp_path_factory):
    """Where conversions of a test session are kept."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def template_36(tokenizer):
    """The template of Qwen3.6, which writes every argument but strings as JSON."""
    source = (FIXTURES / "templates" / "chat_template.qwen3.6.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, tokenizer)


@pytest.fixture(scope="session")
def tiny_intake(tiny_checkpoint):
    """What turns requests into work for an engine of the tiny checkpoint, without its model."""
    from shoal.runtime.config import load_generation_defaults, load_model_config
    from shoal.runtime.intake import Intake
    from shoal.runtime.prompt import build_prompt

    config = load_model_config(tiny_checkpoint)
    known = Tokenizer.load(tiny_checkpoint)
    template = ChatTemplate.load(tiny_checkpoint, known)
    return Intake(
        tokenizer=known,
        build=lambda prompt: build_prompt(prompt, known, template),
        defaults=load_generation_defaults(tiny_checkpoint, config),
        max_model_len=config.max_position_embeddings,
        head_rows=config.vocab_size,
    )
