"""Tests of the few-shot pipeline."""
