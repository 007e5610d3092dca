"""Few-shot adaptation of a running library: prototypes, their exact gradients, augmentation, the procedure."""

from tvm_tinytrain.adaptation.augment import DeviceDraws, DiffAugment, QuerySource
from tvm_tinytrain.adaptation.labelled import LearnResult, learn
from tvm_tinytrain.adaptation.library import AdaptableLibrary
from tvm_tinytrain.adaptation.procedure import AdaptResult, Progress, adapt
from tvm_tinytrain.adaptation.protonet import (
    PrototypeClassifier,
    PrototypeGradients,
    class_prototypes,
    logits,
    loss_and_gradients,
)

__all__ = [
    "AdaptResult",
    "AdaptableLibrary",
    "DeviceDraws",
    "DiffAugment",
    "LearnResult",
    "Progress",
    "PrototypeClassifier",
    "PrototypeGradients",
    "QuerySource",
    "adapt",
    "class_prototypes",
    "learn",
    "logits",
    "loss_and_gradients",
]
