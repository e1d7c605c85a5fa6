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
