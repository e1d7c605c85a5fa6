"""What can go wrong in the runtime.

RuntimeFault
├── OptionInvalid              an engine option has a wrong value or names what this build does not have
├── RequestInvalid             a request cannot be served as it is; `param` is the path of its field
│   └── ContextTooLong         prompt and answer do not fit the context
├── OutOfBlocks                no KV block is free
├── IdsInvalid                 a list of token ids is no list of ids of this model
└── ModelLoadError             the directory cannot be served
    ├── ConfigInvalid          config.json (or a file beside it) is not there, is not JSON or contradicts itself
    ├── Unsupported            understood, and not served by this build
    │   ├── UnsupportedShape   sizes that the native back end has no kernels for
    │   └── FormatMismatch     the weights are converted already, to another format than was asked for
    ├── DoesNotFit             the plan needs more memory than the budget has
    ├── AllocationFailed       the machine did not give what the plan needs
    ├── CheckpointCorrupt      a weight file is truncated, overlapping, pickled or otherwise not what it says
    └── TensorFault            one tensor is wrong
        ├── TensorMissing      the model needs it, no file has it
        ├── UnexpectedTensor   a file has it, the model does not know it
        ├── TensorShape        it has another shape than the config says
        ├── TensorDtype        it has a dtype that weights do not have
        └── TensorNotFinite    it holds NaN or infinity

Each has `code` (a stable word), `retryable` (may the same call succeed later, unchanged?) and a message of one line. Load errors
also name the `file` and the `tensor` where there is one. Imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import ClassVar


class RuntimeFault(Exception):
    """Base of every error that the runtime raises on purpose."""

    code: ClassVar[str] = "runtime_fault"
    retryable: ClassVar[bool] = False


class OptionInvalid(RuntimeFault):
    """An engine option; `option` is its name."""

    code = "option_invalid"

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option = option


class RequestInvalid(RuntimeFault):
    """A request's field; `param` is its path."""

    code = "request_invalid"

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


class ContextTooLong(RequestInvalid):
    """The prompt, or prompt and wished answer, exceed the tokens that one sequence may have."""

    code = "context_length_exceeded"


class OutOfBlocks(RuntimeFault):
    """The KV pool is exhausted; the scheduler keeps this from being seen outside."""

    code = "out_of_blocks"
    retryable = True


class IdsInvalid(RuntimeFault):
    """Not a JSON list of integers in [0, vocabulary)."""

    code = "ids_invalid"


class ModelLoadError(RuntimeFault):
    """The checkpoint, its configuration or the plan for it; `file` and `tensor` are empty where none is to blame."""

    code = "model_load_failed"

    def __init__(self, message: str, *, file: str = "", tensor: str = "") -> None:
        where = ": ".join(part for part in (file, tensor) if part)
        super().__init__(f"{where}: {message}" if where else message)
        self.file = file
        self.tensor = tensor


class ConfigInvalid(ModelLoadError):
    """A configuration file is missing, unreadable, or a key of it is wrong (the message names the key)."""

    code = "config_invalid"


class Unsupported(ModelLoadError):
    """A kind of model, a key's value or a file format that this build does not serve."""

    code = "unsupported"


class UnsupportedShape(Unsupported):
    """The message names the constraint of the native back end that the model's sizes break."""

    code = "unsupported_shape"


class FormatMismatch(Unsupported):
    """Converted weights are served as they are, and only the published ones can be converted."""

    code = "format_mismatch"


class DoesNotFit(ModelLoadError):
    """Bytes `needed` at least (one sequence, smallest context) against bytes `available`."""

    code = "does_not_fit"

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"needs {needed:,} bytes at least and the budget is {available:,} bytes")
        self.needed = needed
        self.available = available


class AllocationFailed(ModelLoadError):
    """The operating system refused memory while weights or cache were allocated; another process may give some back."""

    code = "allocation_failed"
    retryable = True


class CheckpointCorrupt(ModelLoadError):
    """A weight file is not a whole, well-formed safetensors file, or the index does not describe the files."""

    code = "checkpoint_corrupt"


class TensorFault(ModelLoadError):
    """Base of what is wrong with one tensor."""

    code = "tensor_fault"


class TensorMissing(TensorFault):
    """No file holds a tensor of the model."""

    code = "tensor_missing"


class UnexpectedTensor(TensorFault):
    """A tensor is left over: the config does not describe this checkpoint."""

    code = "tensor_unexpected"


class TensorShape(TensorFault):
    """The header's shape differs from the one that follows from the config."""

    code = "tensor_shape"


class TensorDtype(TensorFault):
    """The header's dtype is none of BF16, F16, F32."""

    code = "tensor_dtype"


class TensorNotFinite(TensorFault):
    """NaN or infinity among the values."""

    code = "tensor_not_finite"
