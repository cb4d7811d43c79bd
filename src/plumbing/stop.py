"""Ctrl-C and SIGTERM: finish the step, then save; a second one kills."""

import os
import signal
import sys
from types import FrameType


class StopSignal:
    """While active, the first Ctrl-C or SIGTERM only sets ``number``, so that the step is finished; the second kills.

    (Of torchrun's processes, Ctrl-C reaches each twice, from the terminal and from torchrun, which kills after 30 s.)

    Attributes:
        number: of the signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and "TORCHELASTIC_RUN_ID" in os.environ:
            return
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number
        print(
            f"\n{signal.Signals(number).name}: finishing the step, then saving (again to stop at once)", file=sys.stderr
        )
