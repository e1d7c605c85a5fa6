"""C++ kernels for CPUs; importing this loads the compiled module, nothing else."""

from .module import UnsupportedIsa, Vocabulary, available_isas, best_isa, choose_isa, module_path

__all__ = ["UnsupportedIsa", "Vocabulary", "available_isas", "best_isa", "choose_isa", "module_path"]
