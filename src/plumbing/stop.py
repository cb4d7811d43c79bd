"""Ctrl-C and SIGTERM: finish the current step, then save; a second signal kills."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import TypeVar

from plumbing import ranks

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818
    """A stop signal has come, on any rank."""


class StopSignal:
    """While active, the first Ctrl-C or SIGTERM only sets ``number``; the second kills.

    In a thread it does nothing: Python takes signals in the main thread only.
    (Under torchrun, Ctrl-C reaches each process twice, from the terminal and from torchrun, which kills after 30 s.)

    Attributes:
        number: of the signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "StopSignal":
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def between(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; raises ``Stopped`` before the next one once a signal has come on any rank.

        All ranks must loop equally often: each batch is an exchange between them.
        """
        for batch in batches:
            if number := ranks.all_max(self.number):  # assigned only then: a signal may come during the exchange
                self.number = number
                raise Stopped
            yield batch

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and "TORCHELASTIC_RUN_ID" in os.environ:
            return
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        name = signal.Signals(number).name
        with suppress(OSError):  # stderr is closed
            # print may be busy
            os.write(2, f"\n{name}: finishing the step, then saving (again to stop at once)\n".encode())
