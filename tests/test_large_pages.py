"""Large pages: a program that asks for them restarts once, where the system lets it choose."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import os, sys
from dnw_jax.platform.large_pages import restart_with_large_pages
print("start", os.getpid(), flush=True)
restart_with_large_pages()
print(sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), os.environ["KEPT"])
"""


def lines_of(**environment: str) -> list[str]:
    """Returns the lines that a new process prints."""
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--flag", "a word"],
        env=clean | {"KEPT": "kept"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(
    not POLICY.exists() or "[madvise]" not in POLICY.read_text(),
    reason="this system gives large pages to all programs, or to none",
)
def test_a_program_restarts_once() -> None:
    *starts, last = lines_of()
    assert len(starts) == 2
    assert len(set(starts)) == 1  # the same process, so that signals reach it
    assert last == "['--flag', 'a word'] glibc.malloc.hugetlb=1 kept"


def test_the_user_decides() -> None:
    *starts, last = lines_of(GLIBC_TUNABLES="glibc.malloc.perturb=0")
    assert len(starts) == 1
    assert last == "['--flag', 'a word'] glibc.malloc.perturb=0 kept"
