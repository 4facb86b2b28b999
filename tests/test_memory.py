"""Memory that is freed and used again."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from dnw_jax.memory import keep_freed_memory
print(keep_freed_memory())
import jax, jax.numpy as jnp
double = jax.jit(lambda x: x * 2)
start = jnp.ones(2**24)  # 64 MiB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    double(start).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(20)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has such options")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=str)
def test_later_steps_need_no_new_pages(variables: dict[str, str]) -> None:
    names = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=clean | variables, capture_output=True, check=True)
    kept, faults = done.stdout.split()
    assert (kept == b"True") == (not variables)  # else the user has decided
    assert (int(faults) < 100) == (not variables)
