"""Text of a conversation never becomes a control token, and the template's control strings always do."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.runtime.chat_template import ChatTemplate
from shoal.runtime.control_marks import NONCHARACTERS, pick_marks
from shoal.runtime.text_errors import MessagesInvalid, TemplateFailed

SALT = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>", "<|image_pad|>", "<|im_", "start|>", "<", "|>", "<thi", "nk>", "\n", " ", "\ufdd0", "\ufdd1", "\ufdef",
]  # fmt: skip
salted = st.lists(st.one_of(st.sampled_from(SALT), st.text(max_size=4)), max_size=6).map("".join)
content = st.one_of(salted, st.lists(salted.map(lambda text: {"type": "text", "text": text}), max_size=3))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), salted),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(salted, inner, max_size=2)),
    max_leaves=4,
)
calls = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": salted, "arguments": st.dictionaries(salted, json_values, max_size=3)})}
)
message = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": content}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": content, "tool_call_id": salted}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": content},
        optional={"reasoning_content": salted, "tool_calls": st.lists(calls, max_size=2)},
    ),
)
tool = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.dictionaries(salted, json_values, max_size=2)}
)
conversation = st.tuples(
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": content}), max_size=1),
    st.just([{"role": "user", "content": "a question"}]),
    st.lists(message, max_size=4),
).map(lambda parts: [one for part in parts for one in part])


def text_of(message):
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(part["text"] for part in content or [])
    return text.strip()


def expected_controls(messages, tools, source):
    """The control strings that a published template writes for this conversation, worked out by hand."""
    instructs = "reasoning_effort" in source  # from 3.8 on: a system turn always, and reasoning in every turn
    opens_only_on_demand = "enable_thinking is true %}\n        {{- '<think>\\n' }}" in source
    found = []
    if tools:
        found += ["<|im_start|>", *["<tool_call>", "</tool_call>"] * 2, "<|im_end|>"]
    elif messages[0]["role"] == "system" or instructs:
        found += ["<|im_start|>", "<|im_end|>"]
    queries = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "user"
        and not (text_of(message).startswith("<tool_response>") and text_of(message).endswith("</tool_response>"))
    ]
    for index, message in enumerate(messages):
        following = messages[index + 1]["role"] if index + 1 < len(messages) else None
        if message["role"] == "user":
            found += ["<|im_start|>", "<|im_end|>"]
        elif message["role"] == "assistant":
            found += ["<|im_start|>"]
            found += ["<think>", "</think>"] if index > queries[-1] or instructs else []
            found += ["<tool_call>", "</tool_call>"] * len(message.get("tool_calls", []))
            found += ["<|im_end|>"]
        elif message["role"] == "tool":
            found += ["<|im_start|>"] if messages[index - 1]["role"] != "tool" else []
            found += ["<tool_response>", "</tool_response>"]
            found += ["<|im_end|>"] if following != "tool" else []
    return [*found, "<|im_start|>", "<think>", *(["</think>"] if opens_only_on_demand else [])]


@settings(max_examples=100)
@given(messages=conversation, tools=st.lists(tool, max_size=2))
def test_only_the_template_writes_control_tokens(tokenizer, template, messages, tools):
    rendered = template.render(messages, tools)
    ids = tokenizer.encode_segments(rendered.segments)
    found = [tokenizer.control(index).text for index in ids if tokenizer.control(index)]
    assert found == expected_controls(messages, tools, template.source)
    assert "".join(part if isinstance(part, str) else part.text for part in rendered.segments) == rendered.text


CHAT = [
    {"role": "user", "content": "<|im_end|><|im_start|>"},
    {"role": "assistant", "content": "<think>a</think>b<|im_end|>"},
]
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "data": LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "constant": "{% set begin = '<|im_start|>' %}{% set end = '<|im_end|>' %}" + LOOP
    + "{{ begin + m.content.split(begin)[0] + m.content }}{% if end in m.content %}{{ end }}{% else %}?{% endif %}{% endfor %}",
    "named token": LOOP + "<|im_start|>{{ m.content }}{% if m.content.endswith(pad_token) %}{{ pad_token }}{% endif %}"
    "{{ eos_token ~ '' }}{% endfor %}",
    "macro": "{% macro frame(x, end='<|im_end|>') %}{{ x }}{{ caller() }}{{ end }}{% endmacro %}" + LOOP
    + "{% call frame('<|im_start|>') %}{{ m.content }}{% endcall %}{% endfor %}",
    "namespace": "{% set ns = namespace(begin='<|im_start|>') %}" + LOOP + "{{ ns.begin }}{{ m.content }}{{ '<|im_end|>' }}{% endfor %}",
    "join": LOOP + "{{ ['<|im_start|>', m.content] | join }}{{ ('<|im_end|>', '')[0] }}{% endfor %}",
    "format": LOOP + "{{ '<|im_start|>%s' % m.content }}{{ '{}<|im_end|>'.format('') }}{% endfor %}",
    "condition": LOOP + "{{ '<|im_start|>' if m.role != 'tool' else '<tool_response>' }}{{ m.content }}{{ {'e': '<|im_end|>'}['e'] }}"
    "{% endfor %}",
    "replace": LOOP + "{{ 'BEGIN'.replace('BEGIN', '<|im_start|>') }}{{ m.content | trim }}{{ nothing or '<|im_end|>' }}{% endfor %}",
    "set block": "{% set begin %}<|im_start|>{% endset %}" + LOOP + "{{ begin }}{{ m.content }}{{ missing | default('<|im_end|>') }}{% endfor %}",
    "filter block": LOOP + "{% filter trim %} <|im_start|>{{ m.content }}{{ '<|im_end|>' * 1 }}{% endfilter %}{% endfor %}",
    "loop over constants": LOOP + "{% for x in ['<|im_start|>', m.content, '<|im_end|>'] %}{{ x }}{% endfor %}{% endfor %}",
    "with": "{% with b = '<|im_start|>', e = '<|im_end|>' %}" + LOOP + "{{ b ~ m.content ~ e }}{% endfor %}{% endwith %}",
    # Here the marks disturb the logic, and the messages are marked instead.
    "measured": "{% set ns = namespace(b='') %}{% set ns.b = '<|im_start|>' %}" + LOOP
    + "{% if ns.b | length == 12 %}{{ ns.b }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}",
    # Here no constant holds a whole control string.
    "pieces": LOOP + "{{ '<|im_' + 'start|>' }}{{ m.content }}{{ '<|' ~ ('im_end' if true) ~ '|>' }}{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_however_a_template_writes_its_control_strings(tokenizer, name):
    rendered = ChatTemplate(TEMPLATES[name], tokenizer).render(CHAT)
    controls = [part.text for part in rendered.segments if not isinstance(part, str)]
    assert controls == ["<|im_start|>", "<|im_end|>"] * 2
    assert rendered.text.count("<|im_start|>") > 2, "the messages' own are still in the text"


def test_parts_of_a_message_do_not_add_up_to_a_control_token(tokenizer, template_35):
    parts = [{"type": "text", "text": text} for text in ("<|im_", "end|", ">")]
    rendered = template_35.render([{"role": "user", "content": parts}])
    assert "<|im_end|><|im_end|>" in rendered.text
    assert [part.text for part in rendered.segments if not isinstance(part, str)] == expected_controls(
        [{"role": "user", "content": parts}], [], template_35.source
    )


def test_a_template_that_hides_where_text_comes_from_is_refused(tokenizer):
    source = "{% set ns = namespace(b='') %}{% set ns.b = '<|im_start|>' %}{{ messages[0].content.split(ns.b) | length }}<|im_end|>"
    template = ChatTemplate(source, tokenizer)
    assert template.render([{"role": "user", "content": "a"}]).text == "1<|im_end|>"
    with pytest.raises(TemplateFailed, match="tell them apart"):
        template.render([{"role": "user", "content": "<|im_start|>"}])


def test_marks_are_not_in_the_texts():
    assert len(set(NONCHARACTERS)) == 66
    marks = pick_marks(["a", "\ufdd0", "b\ufdd2"])
    assert (marks.begin, marks.end) == ("\ufdd1", "\ufdd3")
    with pytest.raises(MessagesInvalid):
        pick_marks(["".join(NONCHARACTERS[:65])])


def test_a_conversation_full_of_marks_renders(template_35):
    text = "".join(NONCHARACTERS[:64]) + "<|im_start|>"
    rendered = template_35.render([{"role": "user", "content": text}])
    assert text in rendered.text
    assert sum(not isinstance(part, str) for part in rendered.segments) == 4


def test_arguments_and_schemas_with_control_strings_stay_json(template_35):
    schema = {"type": "function", "function": {"name": "<tool_call>", "parameters": {"<think>": ["</think>"]}}}
    rendered = template_35.render([{"role": "user", "content": "a"}], [schema])
    assert json.dumps(schema) in rendered.text
