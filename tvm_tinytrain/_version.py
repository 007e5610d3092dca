"""The version, in a module that imports nothing, so that the build and the compiler's metadata read the same line."""

__version__ = "0.1.0"
