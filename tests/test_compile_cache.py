"""The compilation cache in the user's cache folder."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import jax
from dnw_jax.platform.compile_cache import enable_compilation_cache
print(enable_compilation_cache())
jax.jit(lambda x: 3 * x + 1)(1.0)
"""


def folder_of(**environment: str) -> str:
    """Returns the folder that a new process prints, after it has compiled something."""
    clean = {name: value for name, value in os.environ.items() if "JAX_COMPILATION" not in name}
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | always | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_programs_are_kept_in_the_cache_folder_of_the_user(tmp_path: Path) -> None:
    folder = Path(folder_of(XDG_CACHE_HOME=str(tmp_path)))
    assert folder.parent == tmp_path / "dnw_jax"
    assert any(folder.iterdir())
    # The same processor has the same folder, and the second process compiles nothing.
    before = sorted(folder.iterdir())
    assert Path(folder_of(XDG_CACHE_HOME=str(tmp_path))) == folder
    assert [path for path in sorted(folder.iterdir()) if path.name.endswith("-cache")] == [
        path for path in before if path.name.endswith("-cache")
    ]


def test_the_user_decides(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    answer = folder_of(JAX_COMPILATION_CACHE_DIR=str(mine), XDG_CACHE_HOME=str(tmp_path))
    assert answer == "None"
    assert any(mine.iterdir())
    assert not (tmp_path / "dnw_jax").exists()
