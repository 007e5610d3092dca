"""What the examples' command lines share."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """The type of an option that counts something there must be one of."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}; allowed 1 or more")
    return value
