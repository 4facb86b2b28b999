"""The cache of compiled programs, kept from one start of a run to the next."""

import os
import platform
import zlib
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Makes JAX keep programs that take a second or more to compile in the user's cache folder.

    The folder depends on the kind of processor, because a program that was compiled for one
    processor can fail on another. JAX_COMPILATION_CACHE_DIR=FOLDER chooses another folder;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.

    Returns:
      The folder, or None if the user has chosen one already.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dnw_jax" / f"compiled-{zlib.crc32(_processor().encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """Returns the name of the processor and its instruction sets."""
    lines = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    description = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(description))])
