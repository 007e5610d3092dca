"""Ctrl-C where C++ stands in between: TVM makes an error of its own of it, and who catches errors would go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


class Interrupts:
    """Whether Ctrl-C came. ``came``: it did, whatever became of its KeyboardInterrupt."""

    def __init__(self) -> None:
        self.came = False

    def check(self) -> None:
        """Raise KeyboardInterrupt where it came: before something is kept, or told, that it may be the cause of."""
        if self.came:
            raise KeyboardInterrupt from None


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Tells whether Ctrl-C came within the block; it raises KeyboardInterrupt as ever.

    It does not come to other threads than the first one, nor where it is ignored.
    """
    found, before = Interrupts(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield found
        return

    def remember(number: int, frame: object) -> None:
        try:
            before(number, frame)  # type: ignore[arg-type]  # the frame that Python gave
        except KeyboardInterrupt:
            found.came = True
            raise

    signal.signal(signal.SIGINT, remember)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Here until the end, and for good in processes that begin meanwhile: a terminal sends it to all, one decides."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and lets Ctrl-C through after it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
