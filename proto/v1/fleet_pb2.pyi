from shoal.proto.v1 import link_pb2 as _link_pb2
from shoal.proto.v1 import node_pb2 as _node_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Node(_message.Message):
    __slots__ = ("id", "link", "state", "stats", "credits", "in_flight", "lease_age_s", "rtt_s", "resident_bytes", "power", "requests_total")
    ID_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LEASE_AGE_S_FIELD_NUMBER: _ClassVar[int]
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    id: str
    link: str
    state: _node_pb2.NodeState
    stats: _link_pb2.EngineStats
    credits: int
    in_flight: int
    lease_age_s: float
    rtt_s: float
    resident_bytes: int
    power: _containers.RepeatedCompositeFieldContainer[_link_pb2.PowerReading]
    requests_total: int
    def __init__(self, id: _Optional[str] = ..., link: _Optional[str] = ..., state: _Optional[_Union[_node_pb2.NodeState, _Mapping]] = ..., stats: _Optional[_Union[_link_pb2.EngineStats, _Mapping]] = ..., credits: _Optional[int] = ..., in_flight: _Optional[int] = ..., lease_age_s: _Optional[float] = ..., rtt_s: _Optional[float] = ..., resident_bytes: _Optional[int] = ..., power: _Optional[_Iterable[_Union[_link_pb2.PowerReading, _Mapping]]] = ..., requests_total: _Optional[int] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...

class GetNodeRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetNodeResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: Node
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ...) -> None: ...

class WatchNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchNodesResponse(_message.Message):
    __slots__ = ("node", "removed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    node: Node
    removed: bool
    def __init__(self, node: _Optional[_Union[Node, _Mapping]] = ..., removed: _Optional[bool] = ...) -> None: ...
