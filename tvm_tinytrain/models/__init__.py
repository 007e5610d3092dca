"""PyTorch definitions of the backbones that TinyTrain adapts, and the import of their int8 releases."""

from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec, fuse
from tvm_tinytrain.models.int8_import import load_int8_backbone
from tvm_tinytrain.models.mcunet import mcunet
from tvm_tinytrain.models.mobilenet_v2 import mobilenet_v2
from tvm_tinytrain.models.proxyless_nas import proxyless_nas

__all__ = [
    "Backbone",
    "BackboneSpec",
    "BlockSpec",
    "fuse",
    "load_int8_backbone",
    "mcunet",
    "mobilenet_v2",
    "proxyless_nas",
]
