"""Tests of the command line: what it refuses before any work."""
