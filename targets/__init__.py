"""Targets, boards, and the C runtime that runs on them."""

if __name__ == "targets":
    raise ImportError("import tvm_tinytrain.targets instead of targets: two copies of a module differ")
