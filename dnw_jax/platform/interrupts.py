"""Ctrl-C and SIGTERM at a moment of our choice: between steps, with what was learnt saved."""

import os
import signal
import threading
from types import FrameType
from typing import Self


class Interrupts:
    """A context manager in which the first Ctrl-C or SIGTERM only leaves a note: `number`.

    A second one interrupts at once (KeyboardInterrupt). In a thread other than the main one, which
    no signal reaches, it changes nothing.

    Attributes:
      number: of the signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def raise_if_interrupted(self) -> None:
        """Raises KeyboardInterrupt with the number of the signal, if one came."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.raise_if_interrupted()
        self.number = number
        # Not print: it may have been interrupted itself.
        os.write(
            2, b"\nsaving after the steps under way, then stopping; Ctrl-C again stops at once\n"
        )
