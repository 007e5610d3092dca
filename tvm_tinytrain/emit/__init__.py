"""From the lowered module to files: {path: bytes}, written by nobody here."""

from tvm_tinytrain.emit.c_source import Library, check_name, emit_c, print_kernels
from tvm_tinytrain.emit.native import emit_object

__all__ = ["Library", "check_name", "emit_c", "emit_object", "print_kernels"]
