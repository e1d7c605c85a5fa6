"""How an engine is to run: the options of every command that loads a model, checked. Imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from .errors import OptionInvalid

BACKENDS = ("auto", "reference")
DTYPES = ("f32", "bf16")
FORMATS = ("auto", "bf16")
KV_FORMATS = ("auto", "bf16", "f32")
ISAS = ("auto",)

DEFAULT_PARALLEL = 16
DEFAULT_BLOCK_TOKENS = 16
DEFAULT_MAX_BATCHED_TOKENS = 512
MAX_PARALLEL = 1024
MAX_BATCHED_TOKENS = 65536
MAX_SNAPSHOTS = 65536
MAX_THREADS = 1024
MAX_CONTEXT = 2**24
ITEM_BYTES = {"f32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Every field has the value that suits an unknown machine; None means: derived from the model and the machine."""

    backend: str = "auto"
    """One of BACKENDS; "auto" is the fastest one present, which is the reference."""
    dtype: str = "f32"
    """In which weights and activations are held and multiplied; states, norms and gates are f32 in both."""
    format: str = "auto"
    """Weight format: "auto" is what the checkpoint has, "bf16" insists that it is not quantised."""
    kv_format: str = "auto"
    """In which keys and values are cached; "auto" follows `dtype`."""
    context: int | None = None
    """Tokens of prompt and answer together that one sequence may have. None: see plan.plan_memory."""
    parallel: int = DEFAULT_PARALLEL
    """Sequences that are decoded side by side at most."""
    threads: int | None = None
    """CPU threads of one step. None: one for a small model, else the library's choice."""
    memory: int | None = None
    """Budget in bytes of everything that the engine holds. None: unlimited, the plan is what it is."""
    isa: str = "auto"
    """Instruction set of the native kernels; there are none in this back end, so only "auto"."""
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    """Tokens of one KV block: small wastes little at the end of a sequence, large keeps block tables short."""
    max_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    """Tokens of one step at most: bounds how long a long prompt keeps the others waiting, and the activations."""
    state_snapshots: int = 0
    """State slots beyond `parallel`, for saved states of shared prefixes."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> EngineOptions:
        """From a mapping such as a command line's or a wire frame's. Raises OptionInvalid for a wrong name or value."""
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise OptionInvalid(name, f"there is no such option; there are {', '.join(sorted(known))}")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The inverse of `from_mapping`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __post_init__(self) -> None:
        choices = (
            ("backend", BACKENDS),
            ("dtype", DTYPES),
            ("format", FORMATS),
            ("kv_format", KV_FORMATS),
            ("isa", ISAS),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise OptionInvalid(name, f"{getattr(self, name)!r} is not available; there is {', '.join(allowed)}")
        self._check_integer("context", 1, MAX_CONTEXT, optional=True)
        self._check_integer("parallel", 1, MAX_PARALLEL)
        self._check_integer("threads", 1, MAX_THREADS, optional=True)
        self._check_integer("memory", 1, 2**60, optional=True)
        self._check_integer("block_tokens", 1, 1024)
        self._check_integer("max_batched_tokens", 1, MAX_BATCHED_TOKENS)
        self._check_integer("state_snapshots", 0, MAX_SNAPSHOTS)
        if self.max_batched_tokens < self.parallel:
            raise OptionInvalid(
                "max_batched_tokens",
                f"{self.max_batched_tokens} leaves no token a step for some of {self.parallel} sequences",
            )

    def _check_integer(self, name: str, minimum: int, maximum: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise OptionInvalid(name, f"must be an integer, not {value!r}")
        if not minimum <= value <= maximum:
            raise OptionInvalid(name, f"must lie in {minimum}..{maximum}, not {value}")

    @property
    def resolved_backend(self) -> Literal["reference"]:
        """The back end that runs."""
        return "reference"

    @property
    def resolved_kv_format(self) -> Literal["f32", "bf16"]:
        """Dtype of cached keys and values."""
        return cast(Literal["f32", "bf16"], self.dtype if self.kv_format == "auto" else self.kv_format)
