"""Passes: structure against expected TVMScript, numbers against PyTorch."""
