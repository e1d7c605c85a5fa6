"""The link's protobuf messages <-> the engine's structs. Pure: every field of one side has its place on the other.

From the controller come requests, calls; to it go outputs, call results, stats and the facts of a served model.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.proto.v1 import generation_pb2, link_pb2, node_pb2
from shoal.runtime import wire

from .errors import StreamBroken

_FINISH_REASON: dict[wire.FinishReason, generation_pb2.FinishReason] = {
    wire.FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    wire.FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    wire.FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    wire.FinishReason.ABORT: generation_pb2.FINISH_REASON_ABORT,
    wire.FinishReason.ERROR: generation_pb2.FINISH_REASON_ERROR,
    wire.FinishReason.DEADLINE: generation_pb2.FINISH_REASON_DEADLINE,
}

_DELTA_KIND: dict[wire.DeltaKind, generation_pb2.DeltaKind] = {
    wire.DeltaKind.TEXT: generation_pb2.DELTA_KIND_TEXT,
    wire.DeltaKind.REASONING: generation_pb2.DELTA_KIND_REASONING,
    wire.DeltaKind.TOOL_CALL_START: generation_pb2.DELTA_KIND_TOOL_CALL_START,
    wire.DeltaKind.TOOL_CALL_ARGUMENTS: generation_pb2.DELTA_KIND_TOOL_CALL_ARGUMENTS,
}


# --- controller -> engine ------------------------------------------------------------------------------------------


def request_from_submit(submit: link_pb2.Submit) -> wire.Request:
    """A submitted request for the engine. Raises StreamBroken when it has no prompt."""
    request = submit.request
    return wire.Request(
        request_id=submit.request_id,
        attempt=submit.attempt,
        prompt=prompt_from_proto(request.prompt),
        sampling=sampling_from_proto(request.sampling),
        n=request.n or 1,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        min_tokens=request.min_tokens,
        stop=list(request.stop),
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        prompt_logprobs=request.prompt_logprobs if request.HasField("prompt_logprobs") else None,
        echo=request.echo,
        deadline_ms=submit.deadline_ms or None,
    )


def prompt_from_proto(prompt: generation_pb2.Prompt) -> wire.Prompt:
    """Raises StreamBroken when none of the alternatives is set."""
    match prompt.WhichOneof("prompt"):
        case "conversation":
            conversation = prompt.conversation
            return wire.Conversation(
                messages=conversation.messages_json,
                tools=conversation.tools_json,
                template_kwargs=conversation.template_kwargs_json,
                tool_choice=conversation.tool_choice or "auto",
                add_generation_prompt=(
                    conversation.add_generation_prompt if conversation.HasField("add_generation_prompt") else True
                ),
            )
        case "text":
            return wire.TextPrompt(text=prompt.text)
        case "ids":
            return wire.IdsPrompt(token_ids=list(prompt.ids.token_ids))
        case _:
            raise StreamBroken("a prompt without a conversation, text or ids")


def sampling_from_proto(sampling: generation_pb2.Sampling) -> wire.Sampling:
    """Absent fields stay None: the engine fills in the checkpoint's defaults."""
    return wire.Sampling(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        presence_penalty=sampling.presence_penalty if sampling.HasField("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if sampling.HasField("frequency_penalty") else None,
        repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else None,
        seed=sampling.seed if sampling.HasField("seed") else None,
        logit_bias=dict(sampling.logit_bias),
    )


def call_from_proto(call: link_pb2.Call) -> wire.TokenizeCall | wire.DetokenizeCall:
    """Raises StreamBroken when neither question is set."""
    match call.WhichOneof("call"):
        case "tokenize":
            return wire.TokenizeCall(call_id=call.call_id, prompt=prompt_from_proto(call.tokenize))
        case "detokenize":
            return wire.DetokenizeCall(call_id=call.call_id, token_ids=list(call.detokenize.token_ids))
        case _:
            raise StreamBroken("a call that asks nothing")


# --- engine -> controller ------------------------------------------------------------------------------------------


def output_to_proto(output: wire.Output) -> generation_pb2.Output:
    """What one flush brought for one choice."""
    message = generation_pb2.Output(
        request_id=output.request_id,
        attempt=output.attempt,
        choice=output.choice,
        first_index=output.first_index,
        token_ids=output.token_ids,
        deltas=[_delta_to_proto(delta) for delta in output.deltas],
        logprobs=_logprobs_to_proto(output.logprobs),
        num_prefilled=output.num_prefilled,
    )
    if output.prompt is not None:
        message.prompt.CopyFrom(
            generation_pb2.PromptOutput(
                token_ids=output.prompt.token_ids,
                text=output.prompt.text,
                logprobs=_logprobs_to_proto(output.prompt.logprobs),
            )
        )
    if output.finish is not None:
        message.finish.CopyFrom(_finish_to_proto(output.finish))
    return message


def _delta_to_proto(delta: wire.Delta) -> generation_pb2.Delta:
    return generation_pb2.Delta(
        kind=_DELTA_KIND[delta.kind],
        tool_index=delta.tool_index,
        call_id=delta.call_id,
        name=delta.name,
        text=delta.text,
    )


def _logprobs_to_proto(logprobs: Iterable[wire.TokenLogprob]) -> list[generation_pb2.TokenLogprob]:
    return [
        generation_pb2.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            token=entry.token,
            top=[
                generation_pb2.TopLogprob(token_id=top.token_id, logprob=top.logprob, token=top.token)
                for top in entry.top
            ],
        )
        for entry in logprobs
    ]


def _finish_to_proto(finish: wire.Finish) -> generation_pb2.Finish:
    usage, timings = finish.usage, finish.timings
    return generation_pb2.Finish(
        reason=_FINISH_REASON[finish.reason],
        usage=generation_pb2.Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
        ),
        timings=generation_pb2.Timings(
            queue_s=timings.queue_s,
            prefill_s=timings.prefill_s,
            ttft_s=timings.ttft_s,
            decode_s=timings.decode_s,
            total_s=timings.total_s,
        ),
        stop_text=finish.stop_text,
        stop_token_id=finish.stop_token_id,
        error=None if finish.error is None else error_to_proto(finish.error),
    )


def error_to_proto(error: wire.ErrorInfo) -> generation_pb2.Error:
    """A typed failure as it is."""
    return generation_pb2.Error(code=error.code, message=error.message, param=error.param, retryable=error.retryable)


def call_result_to_proto(result: wire.CallResult) -> link_pb2.CallResult:
    """The engine's answer to a call."""
    return link_pb2.CallResult(
        call_id=result.call_id,
        token_ids=result.token_ids,
        text=result.text,
        error=None if result.error is None else error_to_proto(result.error),
    )


def stats_to_proto(stats: wire.Stats) -> link_pb2.EngineStats:
    """The engine's books."""
    return link_pb2.EngineStats(
        running=stats.running,
        waiting=stats.waiting,
        kv_blocks_used=stats.kv_blocks_used,
        kv_blocks_cached=stats.kv_blocks_cached,
        kv_blocks_free=stats.kv_blocks_free,
        state_slots_used=stats.state_slots_used,
        state_slots_cached=stats.state_slots_cached,
        state_slots_free=stats.state_slots_free,
        prompt_tokens=stats.prompt_tokens,
        generation_tokens=stats.generation_tokens,
        preemptions=stats.preemptions,
        prefix_cache_queries=stats.prefix_cache_queries,
        prefix_cache_hits=stats.prefix_cache_hits,
        step_s=_histogram_to_proto(stats.step_s, wire.HISTOGRAM_STEP_S),
        host_s=_histogram_to_proto(stats.host_s, wire.HISTOGRAM_STEP_S),
        inter_token_s=_histogram_to_proto(stats.inter_token_s, wire.HISTOGRAM_TOKEN_S),
    )


def _histogram_to_proto(histogram: wire.Histogram, bounds: tuple[float, ...]) -> link_pb2.HistogramState:
    return link_pb2.HistogramState(bounds=bounds, counts=histogram.counts, sum=histogram.total)


def served_model_to_proto(ready: wire.Ready) -> node_pb2.ServedModel:
    """The facts of the loaded model."""
    return node_pb2.ServedModel(
        name=ready.model,
        size=ready.size,
        format=ready.format,
        backend=ready.backend,
        isa=ready.isa,
        max_model_len=ready.max_model_len,
        vocab_size=ready.vocab_size,
        capabilities=ready.capabilities,
        source_digest=ready.source_digest,
        serving_digest=ready.serving_digest,
        determinism_class=ready.determinism_class,
        num_parameters=ready.num_parameters,
    )
