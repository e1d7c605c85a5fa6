import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.chat_template import ChatTemplate
from shoal.runtime.errors import ContextTooLong, RequestInvalid
from shoal.runtime.prompt import build_prompt
from shoal.runtime.text_errors import ContentNotSupported, MessagesInvalid, TemplateFailed, TokenIdInvalid
from shoal.runtime.tokenizer import Tokenizer
from shoal.runtime.wire import Conversation, IdsPrompt, TextPrompt

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}


def conversation(*messages, tools=None, variables=None, **rest):
    def raw(value):
        return b"" if value is None else json.dumps(value).encode()

    return Conversation(messages=raw(list(messages)), tools=raw(tools), template_kwargs=raw(variables), **rest)


def user(content="a"):
    return {"role": "user", "content": content}


def call(arguments):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}],
    }


@pytest.fixture
def build(tokenizer, template_35):
    return lambda prompt: build_prompt(prompt, tokenizer, template_35)


def test_a_conversation(build, tokenizer, reference, template_35):
    messages = [{"role": "system", "content": "s"}, user("hello")]
    prompt = build(conversation(*messages, tools=[TOOL]))
    assert prompt.ids == reference.apply_chat_template(
        messages, tools=[TOOL], chat_template=template_35.source, add_generation_prompt=True, return_dict=False
    )
    assert prompt.text == tokenizer.decode(prompt.ids)
    assert prompt.is_chat and prompt.starts_in_reasoning and prompt.has_tools and prompt.tools == [TOOL]


def test_the_answer_starts_where_the_template_leaves_off(build):
    assert build(conversation(user())).starts_in_reasoning
    assert not build(conversation(user(), variables={"enable_thinking": False})).starts_in_reasoning
    assert not build(conversation(user("<think>"), variables={"enable_thinking": False})).starts_in_reasoning
    assert not build(conversation(user("<think>"), add_generation_prompt=False)).starts_in_reasoning


def test_tool_choice_none_hides_the_tools(build):
    hidden = build(conversation(user(), tools=[TOOL], tool_choice="none"))
    assert hidden.ids == build(conversation(user())).ids
    assert not hidden.has_tools and hidden.tools is None
    assert not build(conversation(user(), tools=[])).has_tools


def test_raw_text_is_parsed_for_control_strings(build, tokenizer):
    prompt = build(TextPrompt("<|im_start|>user\n<think>"))
    assert prompt.ids == tokenizer.encode_raw("<|im_start|>user\n<think>")
    assert prompt.text == "<|im_start|>user\n<think>"
    assert not (prompt.is_chat or prompt.starts_in_reasoning or prompt.has_tools)
    assert build(TextPrompt("")).ids == []


def test_ids_go_through_and_unknown_ones_are_named(build, tokenizer):
    ids = tokenizer.encode_raw("hi<think>")
    prompt = build(IdsPrompt(ids))
    assert prompt.ids == ids and prompt.text == "hi<think>"
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(TokenIdInvalid) as caught:
            build(IdsPrompt([0, 1, wrong]))
        assert caught.value.param == "prompt[2]"


def test_arguments_may_be_json_text_or_a_mapping(build):
    assert (
        build(conversation(user(), call('{"n": 1, "é": [true]}'))).ids
        == build(conversation(user(), call({"n": 1, "é": [True]}))).ids
    )
    for empty in ("", " ", None, "{}"):
        assert build(conversation(user(), call(empty))).ids == build(conversation(user(), call({}))).ids


def test_part_kinds_that_are_text(build):
    parts = [{"type": "text", "text": "a"}, {"text": "b"}, "c", {"type": "input_text", "text": "d", "cache": 1}]
    assert build(conversation(user(parts))).ids == build(conversation(user("abcd"))).ids


def test_developer_is_system(build):
    developer, system = ({"role": role, "content": "x"} for role in ("developer", "system"))
    assert build(conversation(developer, user())).ids == build(conversation(system, user())).ids


@pytest.mark.parametrize(
    ("messages", "error", "param"),
    [
        (b"", MessagesInvalid, "messages"),
        (b"[", MessagesInvalid, "messages"),
        (b"\xff", MessagesInvalid, "messages"),
        (b"{}", MessagesInvalid, "messages"),
        (b"[" * 5_000_000, MessagesInvalid, "messages"),
        (b'[{"role":"user","content":' + b"[" * 900 + b"]" * 900 + b"}]", MessagesInvalid, "messages[0].content[0]"),
        (b"[1]", MessagesInvalid, "messages[0]"),
        (b"[{}]", MessagesInvalid, "messages[0].role"),
        (b"[]", TemplateFailed, "messages"),
        ([user(), {"role": "x"}], TemplateFailed, "messages"),
        ([user(5)], TemplateFailed, "messages"),
        ([user([1])], MessagesInvalid, "messages[0].content[0]"),
        ([user([{"type": "text", "text": None}])], MessagesInvalid, "messages[0].content[0].text"),
        ([user(), user(["a", {"type": "image_url", "image_url": {"url": "x"}}])], ContentNotSupported, "messages[1].content[1]"),
        ([user([{"type": "text", "text": "a", "image": "x"}])], ContentNotSupported, "messages[0].content[0]"),
        ([user([{"type": "refusal", "refusal": "x"}])], ContentNotSupported, "messages[0].content[0]"),
        ([user(), call('{"a"')], MessagesInvalid, "messages[1].tool_calls[0].function.arguments"),
        ([user(), call("[1]")], MessagesInvalid, "messages[1].tool_calls[0].function.arguments"),
        ([user(), call("[" * 9000)], MessagesInvalid, "messages[1].tool_calls[0].function.arguments"),
        ([user(), {"role": "assistant", "tool_calls": [1]}], MessagesInvalid, "messages[1].tool_calls[0]"),
        ([user(), {"role": "assistant", "tool_calls": [{"function": 1}]}], MessagesInvalid, "messages[1].tool_calls[0].function"),
        ([user(), {"role": "assistant", "tool_calls": [{}]}], MessagesInvalid, "messages[1].tool_calls[0].name"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_refused_by_name(build, messages, error, param):
    raw = messages if isinstance(messages, bytes) else json.dumps(messages).encode()
    with pytest.raises(error) as caught:
        build(Conversation(messages=raw))
    assert isinstance(caught.value, RequestInvalid)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("tools", "variables", "param"),
    [
        (b"{}", b"", "tools"),
        (b"[1]", b"", "tools[0]"),
        (b"]", b"", "tools"),
        (b"", b"[]", "chat_template_kwargs"),
        (b"", b"{", "chat_template_kwargs"),
        (b"", b'{"messages": []}', "chat_template_kwargs.messages"),
        (b"", b"[" * 9000, "chat_template_kwargs"),
    ],
)
def test_tools_and_variables_are_checked_too(build, tools, variables, param):
    with pytest.raises(MessagesInvalid) as caught:
        build(Conversation(messages=json.dumps([user()]).encode(), tools=tools, template_kwargs=variables))
    assert caught.value.param == param


def test_null_tools_and_variables_are_none(build):
    raw = json.dumps([user()]).encode()
    assert (
        build(Conversation(messages=raw, tools=b"null", template_kwargs=b"null")).ids
        == build(Conversation(messages=raw)).ids
    )


def test_deep_schemas_and_arguments_end_in_an_error_or_a_prompt(build):
    """Whatever depth JSON decoding lets through, nothing else but a typed error comes of it."""
    for depth in (100, 300, 500, 900, 3000):
        deep = "[" * depth + "]" * depth
        raw = f'[{{"role":"user","content":"a"}},{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{{"a":{deep}}}}}}}]}}]'
        try:
            prompt = build(Conversation(messages=raw.encode(), tools=f'[{{"a":{deep}}}]'.encode()))
        except RequestInvalid:
            assert depth > 100
        else:
            assert deep in prompt.text


def test_what_is_sure_to_be_too_long_is_refused_before_it_is_encoded(tokenizer, template_35):
    for prompt, param in ((TextPrompt("a" * 8_000_000), "prompt"), (conversation(user("é" * 4_000_000)), "messages")):
        began = time.process_time()
        with pytest.raises(ContextTooLong, match="tokens at least") as caught:
            build_prompt(prompt, tokenizer, template_35, context=8192)
        assert caught.value.param == param
        assert time.process_time() - began < 2, "encoding takes longer"
    fits = build_prompt(conversation(user("a" * 100)), tokenizer, template_35, context=8192)
    assert fits.ids == build_prompt(conversation(user("a" * 100)), tokenizer, template_35).ids


@pytest.mark.parametrize("is_chat", [True, False])
def test_much_text_is_judged_by_its_beginning(is_chat: bool, tokenizer: Tokenizer, template_35: ChatTemplate) -> None:
    context = 64
    text = "\u4e9c\u00e9" * 4000  # no word of the vocabulary: every byte is a token
    prompt = conversation(user(text)) if is_chat else TextPrompt(text)
    with pytest.raises(ContextTooLong) as raised:
        build_prompt(prompt, tokenizer, template_35, context=context)
    assert raised.value.param == ("messages" if is_chat else "prompt")
    # Control strings are one token each in raw text, however many letters they have.
    many = TextPrompt("<|im_start|>" * 200)
    assert len(build_prompt(many, tokenizer, template_35, context=context).ids) == 200


def test_without_a_template_there_is_no_chat(tokenizer):
    with pytest.raises(TemplateFailed, match="no chat template"):
        build_prompt(conversation(user()), tokenizer, None)
    assert build_prompt(TextPrompt("a"), tokenizer, None).ids


def test_a_template_that_forbids_is_quoted(tokenizer):
    template = ChatTemplate("{{ raise_exception('only on Mondays') }}", tokenizer)
    with pytest.raises(TemplateFailed, match="only on Mondays"):
        build_prompt(conversation(user()), tokenizer, template)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "function", "name", "arguments", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
likely_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | anything},
    optional={
        "content": st.text(max_size=3) | anything,
        "tool_calls": anything,
        "reasoning_content": anything,
        "name": anything,
    },
)


@settings(max_examples=300)
@given(
    messages=st.lists(likely_message, max_size=3) | anything, tools=st.none() | anything, variables=st.none() | anything
)
def test_any_json_ends_in_a_prompt_or_a_request_error(tokenizer, template, messages, tools, variables):
    def raw(value):
        return b"" if value is None else json.dumps(value).encode()

    try:
        prompt = build_prompt(
            Conversation(messages=json.dumps(messages).encode(), tools=raw(tools), template_kwargs=raw(variables)),
            tokenizer,
            template,
        )
    except RequestInvalid as error:
        assert error.param.split("[")[0].split(".")[0] in ("messages", "tools", "chat_template_kwargs")
    else:
        assert unicodedata.normalize("NFC", tokenizer.decode(prompt.ids)) == unicodedata.normalize("NFC", prompt.text)


def test_the_committed_checkpoint_reads_as_transformers_reads_it():
    import transformers

    directory = Path(__file__).resolve().parents[2] / "models" / "pocket"
    tokenizer = Tokenizer.load(directory)
    template = ChatTemplate.load(directory, tokenizer)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    messages = [
        {"role": "system", "content": "Be brief."},
        user("What is the weather in Oslo?"),
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"n": 1}}}]},
        {"role": "tool", "content": '{"temperature": 21}'},
    ]
    for thinking in (False, True):
        prompt = build_prompt(
            conversation(*messages, tools=[TOOL], variables={"enable_thinking": thinking}), tokenizer, template
        )
        assert prompt.starts_in_reasoning is thinking
        assert prompt.ids == reference.apply_chat_template(
            messages, tools=[TOOL], add_generation_prompt=True, return_dict=False, enable_thinking=thinking
        )
