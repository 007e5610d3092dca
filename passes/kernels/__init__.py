"""Kernels as TIR: each function returns one ``PrimFunc`` that names what it computes in its attributes.

A kernel is written as plain loops in blocks (``pad``, ``conv2d``, ``epilogue``, …); how the loops are ordered, blocked and
kept in registers is the business of ``tvm_tinytrain.schedules``. The attribute ``tt.kernel`` holds the kind and ``tt.spec`` the
parameters as JSON, so that a later stage can read what a call computes without looking at its body or its name.
"""
