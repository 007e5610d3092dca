"""From what users have to one form: an IRModule whose ``main(input, parameters…)`` has its values in ``tt.values``."""

from tvm_tinytrain.frontend.importer import import_model, read_program

__all__ = ["import_model", "read_program"]
