"""Tests, sorted by what they need: nothing, a host compiler, an emulator, a board (see needs.py)."""
