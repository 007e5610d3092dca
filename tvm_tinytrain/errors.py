"""One base error for every stage; its text says stage, thing, value found, value allowed and what to do."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ArchiveError",
    "BoardError",
    "BudgetError",
    "CheckpointError",
    "DTypeError",
    "ImportModelError",
    "KernelError",
    "PlanError",
    "ShapeError",
    "TargetError",
    "TinyTrainError",
    "ToolMissingError",
    "TransportError",
    "UnsupportedOperatorError",
    "check_least",
]


class TinyTrainError(Exception):
    """A failure that a user can act on.

    Parameters
    ----------
    stage
        Where it happened, e.g. ``"frontend"``, ``"plan memory"``, ``"link"``.
    thing
        What it is about: an operator, a layer, a file, a board, ``line:column`` of a source text.
    found
        The value that was found. Anything with a readable ``str``.
    allowed
        The values that are allowed. Anything with a readable ``str``.
    hint
        One clause that says what to do.
    """

    def __init__(self, stage: str, thing: str, found: object, allowed: object, hint: str) -> None:
        self.stage = stage
        self.thing = thing
        self.found = found
        self.allowed = allowed
        self.hint = hint
        super().__init__(stage, thing, found, allowed, hint)

    def __str__(self) -> str:
        return f"{self.stage}: {self.thing}: found {self.found}; allowed {self.allowed}; {self.hint}"


class UnsupportedOperatorError(TinyTrainError):
    """The network holds an operator, or an attribute of one, that cannot be compiled or differentiated."""


class ShapeError(TinyTrainError):
    """A tensor's shape is wrong, dynamic, or not supported."""


class DTypeError(TinyTrainError):
    """A tensor's element type is wrong or not supported."""


class TargetError(TinyTrainError):
    """The target's description is unknown or contradicts itself."""


class BoardError(TinyTrainError):
    """A board is unknown, or a program does not fit it or does not build for it."""


class BudgetError(TinyTrainError):
    """A memory or compute budget cannot be met."""


class PlanError(TinyTrainError):
    """An update plan or a memory plan is not valid."""


class ArchiveError(TinyTrainError):
    """A model library archive is corrupt or of another version."""


class CheckpointError(TinyTrainError):
    """A checkpoint is corrupt, of another version, or belongs to another library."""


class ToolMissingError(TinyTrainError):
    """A program that is needed is not installed; the hint is the exact line that installs it."""


class TransportError(TinyTrainError):
    """A board is silent, crashed, or answers what the protocol does not allow."""


class ImportModelError(TinyTrainError):
    """A model file cannot be read; ``thing`` holds ``line:column`` where the format has lines."""


class KernelError(TinyTrainError):
    """A kernel cannot be generated, scheduled or verified."""


def check_least(stage: str, least: Mapping[str, tuple[int, int]], hint: str) -> None:
    """Raise PlanError for the first value that is too small. least: {what it is: (value, least)}."""
    for thing, (value, low) in least.items():
        if value < low:
            raise PlanError(stage, thing, value, f"{low} or more", hint)
