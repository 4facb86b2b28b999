"""Compiled programs, kept from one start to the next."""

import os
import platform
import zlib
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Lets JAX keep what takes a second or more to compile, in the user's cache folder.

    There in a folder for this kind of processor, since programs for it may not run on another.
    JAX_COMPILATION_CACHE_DIR=FOLDER puts them elsewhere, JAX_ENABLE_COMPILATION_CACHE=false keeps
    none. Gives the folder, or None if the user has decided already.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dnw_jax" / f"compiled-{zlib.crc32(_processor().encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """Its name and what it can do."""
    lines = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(about))])
