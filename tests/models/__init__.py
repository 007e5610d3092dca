"""The backbones and their import."""
