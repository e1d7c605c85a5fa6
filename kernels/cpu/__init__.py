"""C++ kernels for CPUs; importing this loads the compiled module and numpy, nothing else."""

from .module import UnsupportedIsa, available_isas, best_isa, matvec_bf16

__all__ = ["UnsupportedIsa", "available_isas", "best_isa", "matvec_bf16"]
