"""Ctrl-C, and what a cluster sends before it takes a machine away."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Noted:
    """A handler that notes what stops a run within its context, for an exit code; between runs it acts as before."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: object) -> None:
        signal.signal(number, self.before[number])
        signal.raise_signal(number)

    def __enter__(self) -> "Noted":
        self.before = _handlers()
        _put(dict.fromkeys(self.before, self))
        return self

    def __exit__(self, *_: object) -> None:
        _put(self.before)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C or SIGTERM makes the yielded function return True; a later one acts at once.

    So no step is cut in half: student and teacher are saved as a step left them. What is sent to a whole job reaches a
    rank twice, from the cluster and from torchrun: under torchrun, which kills in the end, the first one counts alone.
    """
    stopped = threading.Event()

    before = _handlers()

    def stop(number: int, _frame: object) -> None:
        stopped.set()
        if isinstance(before[number], Noted):
            before[number].signal = number
        if "TORCHELASTIC_RUN_ID" in os.environ:
            return
        _put(before)

    _put(dict.fromkeys(before, stop))
    try:
        yield stopped.is_set
    finally:
        _put(before)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM act at the end of what is within it; where a second one comes, both at once.

    A handler's exception, such as KeyboardInterrupt, may leave Python's own locks taken: one in a thousand within a
    queue of `multiprocessing` does, and whatever closes the queue then waits for ever.
    """
    before = {number: handler for number, handler in _handlers().items() if callable(handler)}
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        if len(noted) > 1:  # somebody who cannot wait
            act()

    def act() -> None:
        _put({number: each for number, each in before.items() if signal.getsignal(number) is note})
        come, noted[:] = list(noted), []
        for number in come:
            signal.raise_signal(number)

    _put(dict.fromkeys(before, note))
    try:
        yield
    finally:
        act()


def _handlers() -> dict[int, Any]:
    """Those of now; none where they cannot be changed, which only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) or signal.SIG_DFL for number in _SIGNALS}


def _put(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
