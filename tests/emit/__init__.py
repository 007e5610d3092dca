"""Emitted C: its text, what compilers and sanitizers say of it, and what it computes."""
