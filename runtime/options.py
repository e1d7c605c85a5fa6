"""How an engine is to run: the options of every command that loads a model, checked. Imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import OptionInvalid

BACKENDS = ("auto", "reference", "cpu")
DTYPES = ("f32", "bf16")
FORMATS = ("auto", "bf16", "int8", "int4")
KV_FORMATS = ("auto", "bf16", "int8", "f32")
ISAS = ("auto", "scalar", "avx2", "avxvnni", "avx512")

DEFAULT_PARALLEL = 16
REFERENCE_BLOCK_TOKENS = 16
NATIVE_BLOCK_TOKENS = 64
DEFAULT_MAX_BATCHED_TOKENS = 512
MAX_PARALLEL = 1024
MAX_BATCHED_TOKENS = 65536
MAX_SNAPSHOTS = 65536
MAX_THREADS = 1024
MAX_CONTEXT = 2**24
ITEM_BYTES = {"f32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True)
class CliOption:
    """How a field of EngineOptions is given on a command line."""

    name: str
    help: str
    choices: tuple[str, ...] = ()
    """What it may be; empty: a positive number, or with `is_size` bytes."""
    is_size: bool = False


CLI_OPTIONS = (
    CliOption("backend", "What computes.  [default: auto]", BACKENDS),
    CliOption("dtype", "Arithmetic of the reference back end.  [default: f32]", DTYPES),
    CliOption("format", "Weights as served; published ones are converted once.  [default: auto]", FORMATS),
    CliOption("kv_format", "Keys and values in the cache.  [default: auto]", KV_FORMATS),
    CliOption("context", "Tokens of prompt and answer together."),
    CliOption("parallel", f"Sequences decoded side by side.  [default: {DEFAULT_PARALLEL}]"),
    CliOption("threads", "CPU threads of a step."),
    CliOption("memory", "Budget of everything, for example 4GiB.", is_size=True),
    CliOption("isa", "Instruction set of the native kernels, for tests.  [default: auto]", ISAS),
)
"""Of every command that loads a model."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Every field has the value that suits an unknown machine; None means: derived from the model and the machine."""

    backend: str = "auto"
    """One of BACKENDS; "auto" is "cpu" (the native kernels) where it can serve the model: see backends.choose_backend."""
    dtype: str = "f32"
    """Of the reference back end: in which weights and activations are held and multiplied; states, norms and gates are f32 in both."""
    format: str = "auto"
    """Weight format: "auto" is what the checkpoint has; the native back end converts a published one to any."""
    kv_format: str = "auto"
    """In which keys and values are cached; "auto" is bf16, in the reference back end `dtype`."""
    context: int | None = None
    """Tokens of prompt and answer together that one sequence may have. None: see plan.plan_memory."""
    parallel: int = DEFAULT_PARALLEL
    """Sequences that are decoded side by side at most."""
    threads: int | None = None
    """CPU threads of one step. None: one for a small model, else a thread a core that this process may use."""
    memory: int | None = None
    """Budget in bytes of everything that the engine holds. None: unlimited, the plan is what it is."""
    isa: str = "auto"
    """Instruction set of the native kernels; "auto" is the best that this machine has."""
    block_tokens: int | None = None
    """Tokens of one KV block: small wastes little at the end of a sequence, large keeps block tables short. None: what the back end
    takes by itself, and the native one takes no other."""
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
        self._check_integer("block_tokens", 1, 1024, optional=True)
        self._check_integer("max_batched_tokens", 1, MAX_BATCHED_TOKENS)
        self._check_integer("state_snapshots", 0, MAX_SNAPSHOTS)
        if self.max_batched_tokens < self.parallel:
            raise OptionInvalid(
                "max_batched_tokens",
                f"{self.max_batched_tokens} leaves no token a step for some of {self.parallel} sequences",
            )
        _ = self.implied_backend  # refuses what contradicts itself

    def _check_integer(self, name: str, minimum: int, maximum: int, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            raise OptionInvalid(name, f"must be an integer, not {value!r}")
        if not minimum <= value <= maximum:
            raise OptionInvalid(name, f"must lie in {minimum}..{maximum}, not {value}")

    @property
    def implied_backend(self) -> str | None:
        """The only back end that can do what is asked, or None where both can. Raises OptionInvalid where none can."""
        asks = {"reference": self._asks_of_reference(), "cpu": self._asks_of_cpu()}
        if self.backend != "auto":
            asks[self.backend] = asks[self.backend] or "backend"
        if asks["reference"] and asks["cpu"]:
            wrong = asks["cpu"] if self.backend == "reference" else asks["reference"]
            owner = "cpu" if wrong == asks["cpu"] else "reference"
            other = asks["cpu"] if owner == "reference" else asks["reference"]
            raise OptionInvalid(
                wrong,
                f"{getattr(self, wrong)!r} is of the back end {owner!r}, but {other} {getattr(self, other)!r} is not",
            )
        return next((backend for backend, option in asks.items() if option), None)

    def _asks_of_reference(self) -> str:
        """An option whose value only the reference back end knows, or ""."""
        if self.dtype != "f32":
            return "dtype"
        return "" if self.block_tokens in (None, NATIVE_BLOCK_TOKENS) else "block_tokens"

    def _asks_of_cpu(self) -> str:
        """An option whose value only the native back end knows, or ""."""
        if self.format in ("int8", "int4"):
            return "format"
        if self.kv_format == "int8":
            return "kv_format"
        return "" if self.isa == "auto" else "isa"
