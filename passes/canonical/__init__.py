"""The table of `Canonicalize`: operator → rewriting rules. Importing the package registers all rules."""

from tvm_tinytrain.passes.canonical import (  # noqa: F401
    activations,
    cumulative,
    identities,
    indexing,
    normalisation,
    pooling,
    products,
    selection,
)
from tvm_tinytrain.passes.canonical.registry import Rewrite, rules_of

__all__ = ["Rewrite", "rules_of"]
