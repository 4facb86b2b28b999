"""Large pages for large arrays: the system clears and looks up 2 MB at a time instead of 4 kB.

A step on a CPU reads and writes hundreds of megabytes; with large pages it takes 0.75 to 0.95 of
the time. Where Linux leaves it to each program ("madvise"), glibc asks for them if the environment
says so when the process starts: later is too late. Processes that it starts inherit it.
"""

import contextlib
import os
import sys
from pathlib import Path

_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"


def restart_with_large_pages() -> None:
    """Starts this process again, by the same command line, if that gives it large pages.

    Does nothing where GLIBC_TUNABLES is set: then the user has decided already.
    """
    if _TUNABLES in os.environ or not _left_to_programs():
        return
    environment = {**os.environ, _TUNABLES: "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _left_to_programs() -> bool:
    with contextlib.suppress(OSError):  # no Linux, or a kernel without them
        return "[madvise]" in _POLICY.read_text()
    return False
