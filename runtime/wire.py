"""The conversation between an agent and its engine: framed msgpack over the child's stdin and stdout.

A frame is a 4-byte little-endian length, then one msgpack-encoded struct of this module. Each side reads one tagged union
(`ToEngine`, `FromEngine`). The agent speaks first with `Configure`; the engine answers with `Ready` or `LoadFailed`, and from
then on sends at most one `OutputBatch` a flush. End of file on stdin ends the engine.

Torch-free and numpy-free: the agent imports this module.
"""

from __future__ import annotations

import enum
import struct
from typing import Any

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A longer frame is a broken peer, not a large message: the reader refuses it before allocating."""

PARSER_VERSION = 1
"""Version of the ids-to-deltas parser; two engines with equal versions emit equal deltas for equal ids."""

_LENGTH = struct.Struct("<I")

HISTOGRAM_STEP_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds of the engine-step and host-time histograms."""

HISTOGRAM_TOKEN_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
)  # fmt: skip
"""Upper bounds in seconds of the inter-token-latency histogram."""


class FrameError(ValueError):
    """A frame is too long or does not decode: the peer is broken and the conversation is over."""


class DeltaKind(enum.IntEnum):
    """What a piece of an answer is, independent of any API's JSON."""

    TEXT = 1
    REASONING = 2
    TOOL_CALL_START = 3
    TOOL_CALL_ARGUMENTS = 4


class Delta(msgspec.Struct, array_like=True, frozen=True):
    """One piece of an answer. `tool_index`, `call_id` and `name` are set on tool kinds only (the latter two on the start)."""

    kind: DeltaKind
    text: str = ""
    tool_index: int = 0
    call_id: str = ""
    name: str = ""


class TopLogprob(msgspec.Struct, array_like=True, frozen=True):
    """One alternative: natural logarithm of the model's own probability, and the token's bytes."""

    token_id: int
    logprob: float
    token: bytes


class TokenLogprob(msgspec.Struct, array_like=True, frozen=True):
    """Logprob of one token that stands in the sequence. `logprob` is None for the first prompt token (nothing precedes it)."""

    token_id: int
    logprob: float | None
    token: bytes
    top: list[TopLogprob] = []


class Sampling(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How the next id is drawn. None means: the checkpoint's own default, then the model card's.

    `seed` None means that the engine draws one. Penalties follow the usual definitions: repetition over prompt and output,
    presence and frequency over generated ids only.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] = {}


class Conversation(msgspec.Struct, tag="conversation"):
    """Chat messages and tools as the client's raw JSON (arrays), validated once at the edge; rendered by the engine."""

    messages: bytes
    tools: bytes = b""
    template_kwargs: bytes = b""
    tool_choice: str = "auto"
    """`auto` or `none` (none: the tools are not shown to the model)."""
    add_generation_prompt: bool = True


class TextPrompt(msgspec.Struct, tag="text"):
    """Raw text in which control strings are parsed."""

    text: str


class IdsPrompt(msgspec.Struct, tag="ids"):
    """Token ids as they are."""

    token_ids: list[int]


Prompt = Conversation | TextPrompt | IdsPrompt


class Request(msgspec.Struct, tag="submit", omit_defaults=True, kw_only=True):
    """A generation request. `deadline_ms` is what remains of the client's deadline when the frame is written."""

    request_id: str
    attempt: int = 0
    prompt: Prompt
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    n: int = 1
    max_tokens: int | None = None
    """None: as many as the context still holds. 0 is allowed with `prompt_logprobs` or `echo` only."""
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    """Number of alternatives a generated token (0: its own logprob only); None: no logprobs."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens. Such a request reads no prefix cache."""
    echo: bool = False
    """Report the prompt's text in `PromptOutput.text` (the gateway puts it in front)."""
    deadline_ms: int | None = None


class Configure(msgspec.Struct, tag="configure", kw_only=True):
    """First frame to the engine: what to load and how. `options` is `config.EngineOptions` as a mapping."""

    model_dir: str
    served_name: str
    options: dict[str, Any] = {}
    home: str = ""
    """Where converted weights and hashes are kept; empty: $SHOAL_HOME."""


class Abort(msgspec.Struct, tag="abort"):
    """The request's sequences are freed before the next step. An unknown id is ignored."""

    request_id: str
    attempt: int = 0


class TokenizeCall(msgspec.Struct, tag="tokenize"):
    """Encode a prompt exactly as a generation request would. Answered by `CallResult`."""

    call_id: str
    prompt: Prompt


class DetokenizeCall(msgspec.Struct, tag="detokenize"):
    """Decode ids, special tokens included. Answered by `CallResult`."""

    call_id: str
    token_ids: list[int]


ToEngine = Configure | Request | Abort | TokenizeCall | DetokenizeCall


class ErrorInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A typed failure. `code` is a stable word; `param` the path of the offending request field."""

    code: str
    message: str
    param: str = ""
    retryable: bool = False


class Usage(msgspec.Struct, array_like=True):
    """Token counts of one choice."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timings(msgspec.Struct, array_like=True):
    """Seconds, measured in the engine from the frame's arrival. `ttft_s` = queue + prefill up to the first generated id."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    total_s: float = 0.0


class PromptOutput(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Once a request, on its first output (choice 0), after prefill: the ids that the model saw."""

    token_ids: list[int]
    text: str = ""
    logprobs: list[TokenLogprob] = []


class FinishReason(enum.StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORT = "abort"
    ERROR = "error"
    DEADLINE = "deadline"


class Finish(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The end of one choice. With `reason` ERROR, `error` says why; a refused request has one Output with choice 0 only."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_text: str = ""
    stop_token_id: int | None = None
    error: ErrorInfo | None = None


class Output(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What one flush brings for one choice. `first_index` is the index of `token_ids[0]` among the generated ids."""

    request_id: str
    attempt: int = 0
    choice: int = 0
    first_index: int = 0
    token_ids: list[int] = []
    deltas: list[Delta] = []
    logprobs: list[TokenLogprob] = []
    num_prefilled: int = 0
    """Prompt tokens processed so far (progress of a long prefill)."""
    prompt: PromptOutput | None = None
    finish: Finish | None = None


class OutputBatch(msgspec.Struct, tag="outputs"):
    """All outputs of one flush."""

    outputs: list[Output]


class CallResult(msgspec.Struct, tag="call_result", omit_defaults=True, kw_only=True):
    """Answer to `TokenizeCall` (token_ids) or `DetokenizeCall` (text), or an error."""

    call_id: str
    token_ids: list[int] = []
    text: str = ""
    error: ErrorInfo | None = None


class Histogram(msgspec.Struct, array_like=True):
    """Cumulative since the engine's start: one count a bucket (not accumulated over buckets, the last is +Inf), and the sum."""

    counts: list[int]
    total: float


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """The engine's books, sent when they change (at most every 250 ms) and once a second when idle. Counters are cumulative."""

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_cached: int
    kv_blocks_free: int
    state_slots_used: int
    state_slots_cached: int
    state_slots_free: int
    prompt_tokens: int
    generation_tokens: int
    preemptions: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    step_s: Histogram
    host_s: Histogram
    inter_token_s: Histogram


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    """The engine serves. Bytes are what the plan said and what was allocated, by pool."""

    model: str
    size: str
    """Catalogue size (`0.8b`, ... ) or the parameter count in words where no catalogue size matches."""
    format: str
    backend: str
    max_model_len: int
    """Tokens of prompt and answer together that one request may have."""
    vocab_size: int
    """Number of ids the tokenizer knows; larger ids are refused in prompts."""
    max_running: int
    """Sequences decoded side by side: the slot credits that the agent grants."""
    capabilities: list[str]
    source_digest: str
    serving_digest: str
    determinism_class: str
    parser_version: int = PARSER_VERSION
    num_parameters: int = 0
    planned_bytes: dict[str, int] = {}
    allocated_bytes: dict[str, int] = {}
    isa: str = ""
    """Instruction set of the kernels that run, as the back end names it."""
    load_s: float = 0.0
    skipped_tensors: dict[str, int] = {}
    backend_note: str = ""
    """Why `--backend auto` did not take the native back end; empty where it did or was not asked."""


class LoadFailed(msgspec.Struct, tag="load_failed"):
    """The model cannot be served; the engine exits with status 1 after this frame."""

    error: ErrorInfo


FromEngine = Ready | LoadFailed | OutputBatch | CallResult | Stats

_encoder = msgspec.msgpack.Encoder()
to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """One frame, length first. Raises FrameError beyond MAX_FRAME_BYTES."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {len(body)} bytes is beyond the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def frame_length(prefix: bytes) -> int:
    """Length of the body that follows this 4-byte prefix. Raises FrameError beyond MAX_FRAME_BYTES."""
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes is beyond the limit of {MAX_FRAME_BYTES}")
    return int(length)
