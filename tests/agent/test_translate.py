"""No field of either side is forgotten: full messages are built from the descriptors and compared field by field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.agent import translate
from shoal.agent.errors import StreamBroken
from shoal.proto.v1 import generation_pb2, link_pb2
from shoal.runtime import wire


def unset_fields(message: Any) -> list[str]:
    """Names of fields that hold their default, at every depth; of a oneof one member suffices."""
    missing = []
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1 and message.WhichOneof(oneof.name) != field.name:
            continue
        if field.is_repeated:
            if not value:
                missing.append(field.full_name)
            elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
                missing += [name for item in value for name in unset_fields(item)]
        elif field.message_type is not None:
            missing += unset_fields(value) if message.HasField(field.name) else [field.full_name]
        elif value == field.default_value:
            missing.append(field.full_name)
    return missing


def default_fields(struct: Any) -> list[str]:
    """Names of fields of a wire struct that hold their default."""
    missing = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if value == default or value in (None, [], {}, "", b""):
            missing.append(f"{type(struct).__name__}.{field.name}")
        elif isinstance(value, msgspec.Struct):
            missing += default_fields(value)
    return missing


CONVERSATION = generation_pb2.Conversation(
    messages_json=b"[]", tools_json=b"[1]", template_kwargs_json=b"{}", tool_choice="none", add_generation_prompt=False
)
SAMPLING = generation_pb2.Sampling(
    temperature=0.5,
    top_p=0.9,
    top_k=7,
    min_p=0.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    repetition_penalty=1.1,
    seed=2**63,
    logit_bias={5: -1.5},
)
REQUEST = generation_pb2.GenerationRequest(
    model="m",
    prompt=generation_pb2.Prompt(conversation=CONVERSATION),
    sampling=SAMPLING,
    n=2,
    max_tokens=9,
    min_tokens=1,
    stop=["x", "y"],
    stop_token_ids=[3],
    ignore_eos=True,
    logprobs=4,
    prompt_logprobs=5,
    echo=True,
)


def test_a_full_request() -> None:
    submit = link_pb2.Submit(request_id="r", attempt=2, request=REQUEST, deadline_ms=1500)
    assert unset_fields(submit) == ["shoal.v1.Conversation.add_generation_prompt"], "false is what is not the default"
    request = translate.request_from_submit(submit)
    assert default_fields(request) == []
    assert request == wire.Request(
        request_id="r",
        attempt=2,
        prompt=wire.Conversation(b"[]", b"[1]", b"{}", "none", False),
        sampling=wire.Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            min_p=0.1,
            presence_penalty=0.2,
            frequency_penalty=0.3,
            repetition_penalty=1.1,
            seed=2**63,
            logit_bias={5: -1.5},
        ),
        n=2,
        max_tokens=9,
        min_tokens=1,
        stop=["x", "y"],
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=4,
        prompt_logprobs=5,
        echo=True,
        deadline_ms=1500,
    )
    assert wire.to_engine_decoder.decode(wire.encode_frame(request)[4:]) == request


def test_absent_is_not_zero() -> None:
    empty = generation_pb2.GenerationRequest(prompt=generation_pb2.Prompt(text=""))
    request = translate.request_from_submit(link_pb2.Submit(request_id="r", request=empty))
    assert request == wire.Request(request_id="r", prompt=wire.TextPrompt(""))
    zeros = generation_pb2.GenerationRequest(
        prompt=generation_pb2.Prompt(ids=generation_pb2.TokenIds()),
        sampling=generation_pb2.Sampling(temperature=0, top_k=0, seed=0),
        max_tokens=0,
        logprobs=0,
        prompt_logprobs=0,
    )
    request = translate.request_from_submit(link_pb2.Submit(request_id="r", request=zeros))
    assert (request.max_tokens, request.logprobs, request.prompt_logprobs) == (0, 0, 0)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0, 0, 0)
    assert request.sampling.top_p is None and request.prompt == wire.IdsPrompt([])


def test_an_empty_conversation_takes_the_defaults() -> None:
    prompt = translate.prompt_from_proto(generation_pb2.Prompt(conversation=generation_pb2.Conversation()))
    assert prompt == wire.Conversation(b"", b"", b"", "auto", True)


def test_calls() -> None:
    tokenize = link_pb2.Call(call_id="c", tokenize=generation_pb2.Prompt(text="x"))
    assert translate.call_from_proto(tokenize) == wire.TokenizeCall("c", wire.TextPrompt("x"))
    detokenize = link_pb2.Call(call_id="c", detokenize=generation_pb2.TokenIds(token_ids=[1, 2]))
    assert translate.call_from_proto(detokenize) == wire.DetokenizeCall("c", [1, 2])


def test_what_asks_nothing() -> None:
    with pytest.raises(StreamBroken):
        translate.call_from_proto(link_pb2.Call(call_id="c"))
    with pytest.raises(StreamBroken):
        translate.request_from_submit(link_pb2.Submit(request_id="r"))


def full_output() -> wire.Output:
    logprob = wire.TokenLogprob(8, -0.25, b"a", [wire.TopLogprob(9, -1.5, b"b")])
    return wire.Output(
        request_id="r",
        attempt=1,
        choice=2,
        first_index=3,
        token_ids=[4, 5],
        deltas=[wire.Delta(wire.DeltaKind.TOOL_CALL_START, "t", 1, "call", "name")],
        logprobs=[logprob],
        num_prefilled=6,
        prompt=wire.PromptOutput(token_ids=[7], text="p", logprobs=[logprob]),
        finish=wire.Finish(
            reason=wire.FinishReason.ERROR,
            usage=wire.Usage(1, 2, 3),
            timings=wire.Timings(0.1, 0.2, 0.3, 0.4, 0.5),
            stop_text="s",
            stop_token_id=11,
            error=wire.ErrorInfo(code="c", message="m", param="p", retryable=True),
        ),
    )


def test_a_full_output() -> None:
    output = full_output()
    assert default_fields(output) == []
    message = translate.output_to_proto(output)
    # The engine measures no energy; everything else is there.
    assert unset_fields(message) == ["shoal.v1.Finish.energy"]
    assert (message.request_id, message.attempt, message.choice, message.first_index) == ("r", 1, 2, 3)
    assert list(message.token_ids) == [4, 5] and message.num_prefilled == 6
    (delta,) = message.deltas
    assert delta == generation_pb2.Delta(
        kind=generation_pb2.DELTA_KIND_TOOL_CALL_START, tool_index=1, call_id="call", name="name", text="t"
    )
    expected = generation_pb2.TokenLogprob(
        token_id=8, logprob=-0.25, token=b"a", top=[generation_pb2.TopLogprob(token_id=9, logprob=-1.5, token=b"b")]
    )
    assert list(message.logprobs) == [expected] == list(message.prompt.logprobs)
    assert list(message.prompt.token_ids) == [7] and message.prompt.text == "p"
    finish = message.finish
    assert finish.usage == generation_pb2.Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=3)
    assert finish.timings == generation_pb2.Timings(queue_s=0.1, prefill_s=0.2, ttft_s=0.3, decode_s=0.4, total_s=0.5)
    assert finish.error == generation_pb2.Error(code="c", message="m", param="p", retryable=True)
    assert (finish.stop_text, finish.stop_token_id) == ("s", 11)


def test_absent_parts_of_an_output() -> None:
    message = translate.output_to_proto(
        wire.Output(request_id="r", logprobs=[wire.TokenLogprob(1, None, b"")], finish=None)
    )
    assert not message.HasField("prompt") and not message.HasField("finish")
    assert not message.logprobs[0].HasField("logprob")
    plain = wire.Finish(reason=wire.FinishReason.STOP, usage=wire.Usage(1, 2), timings=wire.Timings())
    finish = translate.output_to_proto(wire.Output(request_id="r", finish=plain)).finish
    assert not finish.HasField("error") and not finish.HasField("stop_token_id") and not finish.HasField("energy")


@pytest.mark.parametrize("reason", list(wire.FinishReason))
def test_every_finish_reason(reason: wire.FinishReason) -> None:
    finish = wire.Finish(reason=reason, usage=wire.Usage(1, 2), timings=wire.Timings())
    message = translate.output_to_proto(wire.Output(request_id="r", finish=finish))
    name = generation_pb2.FinishReason.Name(message.finish.reason)
    assert name == f"FINISH_REASON_{reason.name}"


@pytest.mark.parametrize("kind", list(wire.DeltaKind))
def test_every_delta_kind(kind: wire.DeltaKind) -> None:
    message = translate.output_to_proto(wire.Output(request_id="r", deltas=[wire.Delta(kind, "x")]))
    assert generation_pb2.DeltaKind.Name(message.deltas[0].kind) == f"DELTA_KIND_{kind.name}"


def test_a_call_result() -> None:
    error = wire.ErrorInfo(code="c", message="m", param="p", retryable=True)
    message = translate.call_result_to_proto(wire.CallResult(call_id="i", token_ids=[1], text="t", error=error))
    assert unset_fields(message) == []
    assert not translate.call_result_to_proto(wire.CallResult(call_id="i")).HasField("error")


def test_full_stats() -> None:
    counts = list(range(1, 14))
    names = [field.name for field in msgspec.structs.fields(wire.Stats)]
    step = wire.Histogram([1] * (len(wire.HISTOGRAM_STEP_S) + 1), 0.5)
    token = wire.Histogram([2] * (len(wire.HISTOGRAM_TOKEN_S) + 1), 1.5)
    stats = wire.Stats(**dict(zip(names, counts, strict=False)), step_s=step, host_s=step, inter_token_s=token)
    message = translate.stats_to_proto(stats)
    assert unset_fields(message) == []
    assert [getattr(message, name) for name in names[:13]] == counts
    assert len(message.inter_token_s.bounds) + 1 == len(message.inter_token_s.counts)
    assert message.step_s.sum == 0.5 and tuple(message.step_s.bounds) == wire.HISTOGRAM_STEP_S


def test_a_served_model() -> None:
    ready = wire.Ready(
        model="m",
        size="0.8b",
        format="bf16",
        backend="reference",
        isa="avx2",
        max_model_len=10,
        vocab_size=11,
        max_running=12,
        capabilities=["chat"],
        source_digest="a",
        serving_digest="b",
        determinism_class="c",
        num_parameters=13,
    )
    message = translate.served_model_to_proto(ready)
    assert unset_fields(message) == []
    for name in message.DESCRIPTOR.fields_by_name:
        expected = ready.model if name == "name" else getattr(ready, name)
        value = getattr(message, name)
        assert (list(value) if name == "capabilities" else value) == expected
