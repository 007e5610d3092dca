"""The gradient table: operator or kernel → rule. Importing the package registers all rules."""

from tvm_tinytrain.passes.gradients import arithmetic, layers, pooling, shape  # noqa: F401
from tvm_tinytrain.passes.gradients.registry import GradientContext, gradient_of, known_operators

__all__ = ["GradientContext", "gradient_of", "known_operators"]
