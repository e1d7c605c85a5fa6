"""Rendering against transformers, over every published template; where a template comes from; what it may not do."""

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.chat_template import ChatTemplate, find_template
from shoal.runtime.text_errors import TemplateFailed, TemplateInvalid

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für 東京 <b>&'\"",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln\n2", "days": 3}}}
ODD = {
    "function": {
        "name": "g",
        "arguments": {"l": [1, "é", None], "m": {"b": True}, "n": None, "t": False, "f": 1.5, "s": ""},
    }
}
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": " be brief \n"}, {"role": "user", "content": "\nHi  "}],
    "empty": [{"role": "system", "content": ""}, {"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "why\n"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning_content": " because "},
    ],
    "thinking in content": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "x</think>y</think>z"},
    ],
    "reasoning under other names": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "r"},
        {"role": "assistant", "content": None, "thinking": "t", "reasoning_content": None},
    ],
    "tool calls": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "r", "tool_calls": [CALL, ODD, CALL]},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "tool", "content": "<tool_response>no</tool_response>"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "<tool_response>not a result</tool_response>"},
    ],
    "no arguments": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}, {"name": "g"}]},
    ],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": " b"}]},
        {"role": "assistant", "content": []},
    ],
    "unicode": [
        {"role": "user", "content": "e\u0301 नमस्ते 🙂 \u200d\u00a0\ufeff\x00\u2028 \ufdd0\ufdd1 {{ x }} {% raw %}"}
    ],
    "no user": [{"role": "system", "content": "s"}],
    "late system": [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}],
    "unknown role": [{"role": "user", "content": "a"}, {"role": "critic", "content": "s"}],
    "number": [{"role": "user", "content": 5}],
    "nothing": [],
}
VARIABLES = [
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"preserve_thinking": True},
    {"preserve_thinking": False, "reasoning_effort": "low"},
    {"reasoning_effort": "medium"},
    {"reasoning_effort": "none"},
]


def expected(reference, template, messages, tools, variables, add_generation_prompt, **options):
    """What transformers makes of it, or that it fails."""
    try:
        return reference.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template.source,
            add_generation_prompt=add_generation_prompt,
            **options,
            **variables,
        )
    except Exception as error:
        return error


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [], [WEATHER], [WEATHER, {"type": "function", "function": {"name": "g"}}]])
def test_text_equals_that_of_transformers(reference, template, name, tools):
    messages = CONVERSATIONS[name]
    for variables in VARIABLES:
        for add_generation_prompt in (True, False):
            want = expected(reference, template, messages, tools, variables, add_generation_prompt, tokenize=False)
            if isinstance(want, Exception):
                with pytest.raises(TemplateFailed) as caught:
                    template.render(messages, tools, variables, add_generation_prompt=add_generation_prompt)
                assert caught.value.code == "template_error"
                assert caught.value.param == "messages"
                continue
            rendered = template.render(messages, tools, variables, add_generation_prompt=add_generation_prompt)
            assert rendered.text == want
            assert "".join(part if isinstance(part, str) else part.text for part in rendered.segments) == want


plain_text = st.text(max_size=12).filter(lambda text: "<" not in text)
turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), plain_text), max_size=5)


@settings(max_examples=60)
@given(turns=turns, question=plain_text, with_tools=st.booleans())
def test_ids_equal_those_of_transformers(reference, tokenizer, template, turns, question, with_tools):
    messages = [{"role": "user", "content": question}, *({"role": role, "content": text} for role, text in turns)]
    tools = [WEATHER] if with_tools else None
    want = expected(reference, template, messages, tools, {}, True, tokenize=True, return_dict=False)
    assert not isinstance(want, Exception)
    assert tokenizer.encode_segments(template.render(messages, tools).segments) == want


def test_the_jinja_file_comes_first_then_the_config_then_the_json_file(tmp_path):
    assert find_template(tmp_path, {}) is None
    (tmp_path / "chat_template.json").write_text('{"chat_template": "c"}')
    assert find_template(tmp_path, {}) == "c"
    assert find_template(tmp_path, {"chat_template": "b"}) == "b"
    (tmp_path / "chat_template.jinja").write_text("ä", encoding="utf-8")
    assert find_template(tmp_path, {"chat_template": "b"}) == "ä"


def test_of_named_templates_the_default_one_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert find_template(tmp_path, {"chat_template": named}) == "d"
    assert find_template(tmp_path, {"chat_template": {"only": "o"}}) == "o"
    for wrong in (named[:1] * 2 + [{"name": "rag", "template": "r"}], [1], 5, [{"name": "default", "template": 1}]):
        with pytest.raises(TemplateInvalid):
            find_template(tmp_path, {"chat_template": wrong})


@pytest.mark.parametrize(("name", "content"), [("chat_template.jinja", b"\xff"), ("chat_template.json", b"{")])
def test_a_broken_template_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TemplateInvalid) as caught:
        find_template(tmp_path, {})
    assert caught.value.file == name


def test_the_template_of_a_directory(tiny_dir, tokenizer, tmp_path):
    assert ChatTemplate.load(tmp_path, tokenizer) is None
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}", encoding="utf-8")
    loaded = ChatTemplate.load(tmp_path, tokenizer)
    assert loaded.render([{"content": "a"}]).segments == ("a", tokenizer.controls["<|im_end|>"])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "{% for %}", "{{" * 2000])
def test_a_template_that_does_not_compile(tokenizer, source):
    with pytest.raises(TemplateInvalid):
        ChatTemplate(source, tokenizer)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages.x.y }}",
        "{{ nothing | tojson }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + messages[0].count }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 100000000 }}",
        "{{ [1] * 100000000 }}",
        "{{ 9 ** 99999 }}",
        "{% for i in range(1000000) %}a{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    ],
)
def test_what_fails_inside_is_a_template_error(tokenizer, source):
    template = ChatTemplate(source, tokenizer)
    with pytest.raises(TemplateFailed):
        template.render([{"role": "user", "content": "a", "count": 1}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ [1, 'é', '<'] | tojson }}", '[1, "é", "<"]'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("a\n{% generation %}{% set x = 1 %}b{% endgeneration %}{{ x }}\nc", "a\nb\nc"),
        ("{{ strftime_now('%Y-%m-%d') }}", "2026-01-02"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['k'], 2).k }}{{ 'ab' * 2 }}{{ 2 ** 3 }}", "12abab8"),
        ("{{ bos_token is defined }}{{ pad_token }}", "False<|endoftext|>"),
    ],
)
def test_what_templates_may_use(tokenizer, source, text):
    template = ChatTemplate(source, tokenizer)
    assert template.render([{"role": "user", "content": "a"}], now=datetime(2026, 1, 2)).text == text


def test_variables_of_a_request_reach_the_template(tokenizer):
    template = ChatTemplate("{{ depth }}{{ eos_token }}", tokenizer)
    rendered = template.render([], None, {"depth": "<think>", "eos_token": "<|im_start|>"})
    assert rendered.segments == ("<think><|im_start|>",)


def test_json_numbers_survive(template_35):
    arguments = json.loads('{"big": 123456789012345678901234567890, "e": 1e-7, "list": [1.0, -0.0]}')
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]},
    ]
    text = template_35.render(messages).text
    assert "\n123456789012345678901234567890\n" in text and "\n1e-07\n" in text and "[1.0, -0.0]" in text
