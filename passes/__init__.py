"""Graph passes over Relax IRModules, one per file."""

if __name__ == "passes":
    raise ImportError("import tvm_tinytrain.passes instead of passes: two copies of a module differ")

from tvm_tinytrain.passes.error_bridge import register_errors

register_errors()
