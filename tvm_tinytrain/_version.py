"""The version, where the build and the compiler's metadata both read it without importing anything else."""

__version__ = "0.1.0"
