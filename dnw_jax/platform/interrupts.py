"""Ctrl-C and SIGTERM take effect between steps, after a checkpoint was saved."""

import os
import signal
import threading
from types import FrameType
from typing import Self

import jax


class Interrupts:
    """A context manager that records the first Ctrl-C or SIGTERM instead of raising.

    The second signal raises KeyboardInterrupt at once; one of several processes it ends. Signals
    reach the main thread alone; in any other thread this class does nothing.

    Attributes:
      number: of the signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._old_handlers = {
                number: signal.signal(number, self._record) for number in self.SIGNALS
            }
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            for number, handler in self._old_handlers.items():
                # None: a handler that was not installed from Python, and cannot be restored.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            raise KeyboardInterrupt(self.number)
        self.number = number
        if jax.process_count() > 1:
            # KeyboardInterrupt would wait for the other processes, or for a step that never ends.
            for each in self.SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        # Not print: the signal may have interrupted a print.
        os.write(
            2, b"\nsaving after the steps under way, then stopping; Ctrl-C again stops at once\n"
        )
