"""Ctrl-C at a moment of our choice: never in the middle of a checkpoint, where it could do harm."""

import os
import signal
import threading
from types import FrameType
from typing import Self


class Interrupts:
    """A context manager in which Ctrl-C only leaves a note, for `check` to find.

    A second Ctrl-C interrupts at once. In a thread other than the main one, which no Ctrl-C
    reaches, it changes nothing.
    """

    def __init__(self) -> None:
        self._noted = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raises KeyboardInterrupt if there has been a Ctrl-C."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.check()
        self._noted = True
        # Not print: it may have been interrupted itself.
        os.write(2, b"\nstopping after the steps under way; Ctrl-C again stops at once\n")
