"""The gradient table: operator or kernel → rule. Importing the package registers all rules."""

from tvm_tinytrain.passes.gradients import (  # noqa: F401
    activations,
    arithmetic,
    cumulative,
    layers,
    normalisation,
    pooling,
    products,
    reductions,
    shape,
)
from tvm_tinytrain.passes.gradients.registry import GradientContext, gradient_of, known_operators

__all__ = ["GradientContext", "gradient_of", "known_operators"]
