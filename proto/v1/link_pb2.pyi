from shoal.proto.v1 import generation_pb2 as _generation_pb2
from shoal.proto.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AgentFrame(_message.Message):
    __slots__ = ("hello", "heartbeat", "outputs", "call_result", "state", "leaving")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CALL_RESULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    outputs: OutputBatch
    call_result: CallResult
    state: _node_pb2.NodeState
    leaving: Leaving
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., outputs: _Optional[_Union[OutputBatch, _Mapping]] = ..., call_result: _Optional[_Union[CallResult, _Mapping]] = ..., state: _Optional[_Union[_node_pb2.NodeState, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ...) -> None: ...

class ControllerFrame(_message.Message):
    __slots__ = ("welcome", "goodbye", "submit", "cancel", "call", "heartbeat_ack")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    goodbye: Goodbye
    submit: Submit
    cancel: Cancel
    call: Call
    heartbeat_ack: HeartbeatAck
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., call: _Optional[_Union[Call, _Mapping]] = ..., heartbeat_ack: _Optional[_Union[HeartbeatAck, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node_id", "min_protocol", "max_protocol", "features", "agent_version", "parser_version", "state")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MIN_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    MAX_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARSER_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    min_protocol: int
    max_protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    agent_version: str
    parser_version: int
    state: _node_pb2.NodeState
    def __init__(self, node_id: _Optional[str] = ..., min_protocol: _Optional[int] = ..., max_protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ..., parser_version: _Optional[int] = ..., state: _Optional[_Union[_node_pb2.NodeState, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "features", "heartbeat_interval_ms", "lease_ms", "controller_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    CONTROLLER_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    heartbeat_interval_ms: int
    lease_ms: int
    controller_version: str
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., heartbeat_interval_ms: _Optional[int] = ..., lease_ms: _Optional[int] = ..., controller_version: _Optional[str] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("code", "message", "retry")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retry: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retry: _Optional[bool] = ...) -> None: ...

class Leaving(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sequence", "stats", "agent_resident_bytes", "engine_resident_bytes", "power", "cpu_load_ratio", "battery_ratio", "on_battery", "rtt_s", "engine_restarts")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    AGENT_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    CPU_LOAD_RATIO_FIELD_NUMBER: _ClassVar[int]
    BATTERY_RATIO_FIELD_NUMBER: _ClassVar[int]
    ON_BATTERY_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    ENGINE_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    stats: EngineStats
    agent_resident_bytes: int
    engine_resident_bytes: int
    power: _containers.RepeatedCompositeFieldContainer[PowerReading]
    cpu_load_ratio: float
    battery_ratio: float
    on_battery: bool
    rtt_s: float
    engine_restarts: int
    def __init__(self, sequence: _Optional[int] = ..., stats: _Optional[_Union[EngineStats, _Mapping]] = ..., agent_resident_bytes: _Optional[int] = ..., engine_resident_bytes: _Optional[int] = ..., power: _Optional[_Iterable[_Union[PowerReading, _Mapping]]] = ..., cpu_load_ratio: _Optional[float] = ..., battery_ratio: _Optional[float] = ..., on_battery: _Optional[bool] = ..., rtt_s: _Optional[float] = ..., engine_restarts: _Optional[int] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class PowerReading(_message.Message):
    __slots__ = ("domain", "provenance", "watts", "joules_total")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    WATTS_FIELD_NUMBER: _ClassVar[int]
    JOULES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    domain: str
    provenance: str
    watts: float
    joules_total: float
    def __init__(self, domain: _Optional[str] = ..., provenance: _Optional[str] = ..., watts: _Optional[float] = ..., joules_total: _Optional[float] = ...) -> None: ...

class EngineStats(_message.Message):
    __slots__ = ("running", "waiting", "kv_blocks_used", "kv_blocks_cached", "kv_blocks_free", "state_slots_used", "state_slots_cached", "state_slots_free", "prompt_tokens", "generation_tokens", "preemptions", "prefix_cache_queries", "prefix_cache_hits", "step_s", "host_s", "inter_token_s")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    STATE_SLOTS_USED_FIELD_NUMBER: _ClassVar[int]
    STATE_SLOTS_CACHED_FIELD_NUMBER: _ClassVar[int]
    STATE_SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    HOST_S_FIELD_NUMBER: _ClassVar[int]
    INTER_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
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
    step_s: HistogramState
    host_s: HistogramState
    inter_token_s: HistogramState
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ..., kv_blocks_cached: _Optional[int] = ..., kv_blocks_free: _Optional[int] = ..., state_slots_used: _Optional[int] = ..., state_slots_cached: _Optional[int] = ..., state_slots_free: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., prefix_cache_queries: _Optional[int] = ..., prefix_cache_hits: _Optional[int] = ..., step_s: _Optional[_Union[HistogramState, _Mapping]] = ..., host_s: _Optional[_Union[HistogramState, _Mapping]] = ..., inter_token_s: _Optional[_Union[HistogramState, _Mapping]] = ...) -> None: ...

class HistogramState(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "attempt", "request", "deadline_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    request: _generation_pb2.GenerationRequest
    deadline_ms: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., request: _Optional[_Union[_generation_pb2.GenerationRequest, _Mapping]] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("call_id", "tokenize", "detokenize")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    DETOKENIZE_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    tokenize: _generation_pb2.Prompt
    detokenize: _generation_pb2.TokenIds
    def __init__(self, call_id: _Optional[str] = ..., tokenize: _Optional[_Union[_generation_pb2.Prompt, _Mapping]] = ..., detokenize: _Optional[_Union[_generation_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class CallResult(_message.Message):
    __slots__ = ("call_id", "token_ids", "text", "error")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    error: _generation_pb2.Error
    def __init__(self, call_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., error: _Optional[_Union[_generation_pb2.Error, _Mapping]] = ...) -> None: ...

class OutputBatch(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Output]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_generation_pb2.Output, _Mapping]]] = ...) -> None: ...
