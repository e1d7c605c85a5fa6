"""`/metrics` of a controller: what it counted itself, and what its nodes reported.

A request and its tokens count once, at its end. Both formats are negotiated by the Accept header.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from .metrics_text import render_nodes
from .registry import Registry
from .request_record import RequestRecord

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
"""Seconds. Small boxes take minutes for a long prompt: the usual ten seconds at most would hide them all in +Inf."""

REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
"""Seconds of a whole request and of its parts."""

MAX_MODEL_LABELS = 256
"""Models with series of their own; later ones share `other`, so that renamed directories cannot grow the page for ever."""

MAX_REASON_LABELS = 64


class Metrics:
    """Implements `request_record.Recorder`. `num_waiting` asks for the length of the controller's queue."""

    def __init__(
        self, registry: Registry, num_waiting: Callable[[], int], version: str, max_models: int = MAX_MODEL_LABELS
    ) -> None:
        self._nodes = registry
        self._num_waiting = num_waiting
        self._now = time.monotonic
        self._max_models = max_models
        self._models: set[str] = set()
        self._reasons: set[str] = set()
        own = CollectorRegistry(auto_describe=True)
        self._own = _WithoutCreated(own)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"shoal_{name}", text, labels, registry=own)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"shoal_{name}", text, ("model",), buckets=buckets, registry=own)

        self._requests = counter("requests", "Requests that ended, however they did.", "model", "node", "finish_reason")
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of ended requests.", "model", "node")
        self._generation_tokens = counter("generation_tokens", "Generated tokens of ended requests.", "model", "node")
        self._rejections = counter("admission_rejections", "Requests refused before they reached a node.", "reason")
        self._ttft = histogram("time_to_first_token_seconds", "From arrival to the first token.", TTFT_BUCKETS)
        self._e2e = histogram("e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_BUCKETS)
        self._queue = histogram("request_queue_seconds", "Waiting, here and in the engine.", REQUEST_BUCKETS)
        self._prefill = histogram("request_prefill_seconds", "Computing the prompt.", REQUEST_BUCKETS)
        self._decode = histogram("request_decode_seconds", "From the first token to the last.", REQUEST_BUCKETS)
        Gauge("shoal_build_info", "Always 1; the label says what runs.", ("version",), registry=own).labels(
            version
        ).set(1)

    def record(self, record: RequestRecord) -> None:
        """See `Recorder.record`."""
        model = _bounded(record.model, self._models, self._max_models)
        self._prompt_tokens.labels(model, record.node).inc(record.prompt_tokens)
        self._generation_tokens.labels(model, record.node).inc(record.completion_tokens)
        if record.is_part:
            return
        self._requests.labels(model, record.node, record.finish_reason).inc()
        for metric, value in (
            (self._ttft, record.ttft_s),
            (self._e2e, record.total_s),
            (self._queue, record.queue_s),
            (self._prefill, record.prefill_s),
            (self._decode, record.decode_s),
        ):
            if value is not None:
                metric.labels(model).observe(value)

    def refuse(self, reason: str) -> None:
        """See `Recorder.refuse`."""
        self._rejections.labels(_bounded(reason, self._reasons, MAX_REASON_LABELS)).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type; OpenMetrics where `accept` prefers it."""
        encode, content_type = choose_encoder(accept)
        own: bytes = encode(self._own)
        openmetrics = content_type.startswith("application/openmetrics-text")
        nodes = render_nodes(self._nodes, self._num_waiting(), self._now(), openmetrics=openmetrics).encode()
        end = b"# EOF\n" if openmetrics else b""
        return own.removesuffix(end) + nodes + end, content_type


class _WithoutCreated:
    """A registry without the `_created` series: a gauge a series that no query of ours needs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)


def _bounded(label: str, known: set[str], limit: int) -> str:
    if label in known:
        return label
    if len(known) >= limit:
        return "other"
    known.add(label)
    return label
