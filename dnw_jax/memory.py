"""Memory that is freed stays with the process, for its next step."""

import ctypes
import os
import sys

# As glibc's malloc.h numbers them, and what is asked for.
_OPTIONS = {
    -1: -1,  # M_TRIM_THRESHOLD: nothing is given back,
    -4: 0,  # M_MMAP_MAX: no array is a mapping of its own, which would end with it,
    -8: 1,  # M_ARENA_MAX: and all threads share the heap.
}


def keep_freed_memory() -> bool:
    """Lets this process use again what it has freed, instead of asking the system each time.

    A step on a CPU allocates its buffers anew. The system clears their pages, which takes up to an
    eighth of the time of a step. Best called before other threads start. The process stays as large
    as it was at its largest, up to twice as large as otherwise. Gives whether it does that: only
    with glibc, and not if MALLOC_... variables or GLIBC_TUNABLES say how memory is to be used.
    """
    decided = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if decided or sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and all(
        set_option(option, value) for option, value in _OPTIONS.items()
    )
