from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodePhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_PHASE_UNSPECIFIED: _ClassVar[NodePhase]
    NODE_PHASE_LOADING: _ClassVar[NodePhase]
    NODE_PHASE_READY: _ClassVar[NodePhase]
    NODE_PHASE_DRAINING: _ClassVar[NodePhase]
    NODE_PHASE_FAILED: _ClassVar[NodePhase]
NODE_PHASE_UNSPECIFIED: NodePhase
NODE_PHASE_LOADING: NodePhase
NODE_PHASE_READY: NodePhase
NODE_PHASE_DRAINING: NodePhase
NODE_PHASE_FAILED: NodePhase

class NodeState(_message.Message):
    __slots__ = ("phase", "pid", "engine_pid", "metrics_url", "slots", "model", "hardware", "planned_bytes", "allocated_bytes", "detail")
    class PlannedBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class AllocatedBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PID_FIELD_NUMBER: _ClassVar[int]
    METRICS_URL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    phase: NodePhase
    pid: int
    engine_pid: int
    metrics_url: str
    slots: int
    model: ServedModel
    hardware: Hardware
    planned_bytes: _containers.ScalarMap[str, int]
    allocated_bytes: _containers.ScalarMap[str, int]
    detail: str
    def __init__(self, phase: _Optional[_Union[NodePhase, str]] = ..., pid: _Optional[int] = ..., engine_pid: _Optional[int] = ..., metrics_url: _Optional[str] = ..., slots: _Optional[int] = ..., model: _Optional[_Union[ServedModel, _Mapping]] = ..., hardware: _Optional[_Union[Hardware, _Mapping]] = ..., planned_bytes: _Optional[_Mapping[str, int]] = ..., allocated_bytes: _Optional[_Mapping[str, int]] = ..., detail: _Optional[str] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "size", "format", "backend", "max_model_len", "vocab_size", "capabilities", "source_digest", "serving_digest", "determinism_class", "num_parameters", "isa")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVING_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETERMINISM_CLASS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ISA_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: str
    format: str
    backend: str
    max_model_len: int
    vocab_size: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    source_digest: str
    serving_digest: str
    determinism_class: str
    num_parameters: int
    isa: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[str] = ..., format: _Optional[str] = ..., backend: _Optional[str] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ..., source_digest: _Optional[str] = ..., serving_digest: _Optional[str] = ..., determinism_class: _Optional[str] = ..., num_parameters: _Optional[int] = ..., isa: _Optional[str] = ...) -> None: ...

class Hardware(_message.Message):
    __slots__ = ("hostname", "os", "arch", "cpu_model", "physical_cores", "logical_cores", "memory_total_bytes", "memory_limit_bytes", "gpus", "has_battery")
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    OS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    CPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    PHYSICAL_CORES_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    HAS_BATTERY_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    os: str
    arch: str
    cpu_model: str
    physical_cores: int
    logical_cores: int
    memory_total_bytes: int
    memory_limit_bytes: int
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    has_battery: bool
    def __init__(self, hostname: _Optional[str] = ..., os: _Optional[str] = ..., arch: _Optional[str] = ..., cpu_model: _Optional[str] = ..., physical_cores: _Optional[int] = ..., logical_cores: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., has_battery: _Optional[bool] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("name", "memory_bytes", "driver")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_bytes: int
    driver: str
    def __init__(self, name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., driver: _Optional[str] = ...) -> None: ...
