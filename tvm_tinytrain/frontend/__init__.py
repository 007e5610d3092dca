"""From what users have to one form: an IRModule whose ``main(input, parameters…)`` has its values in ``tt.values``."""

from tvm_tinytrain.frontend.importer import import_model

__all__ = ["import_model"]
