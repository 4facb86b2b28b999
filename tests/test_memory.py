"""Memory that is freed and used again."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from dnw_jax.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
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
def test_later_steps_need_no_new_pages() -> None:
    faults = {}
    for keep in (False, True):
        program = PROGRAM.format(keep=keep)
        command = [sys.executable, "-c", program]
        faults[keep] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert faults[True] < 100 < faults[False]
