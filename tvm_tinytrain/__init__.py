"""A compiler for on-device training: adapts a trained network on Arm microcontrollers and processors."""

from tvm_tinytrain._version import __version__

__all__ = ["__version__"]
