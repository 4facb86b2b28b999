"""Runs that a test can afford: 512 synthetic images of 8x8 pixels, a graph of 24 nodes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dnw_jax.config import load_config
from dnw_jax.main import main
from experiments.hosts import saved

# What a run has saved.
arrays, saved_state = saved.arrays, saved.state

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")

SMALL = {
    "batch_size": "32",  # 16 steps an epoch
    "num_steps": "10",
    "dataset.name": "synthetic",
    "dataset.image_size": "8",
    "dataset.flip": "true",
    "model.num_nodes": "24",
    "model.num_inputs": "4",
    "model.num_outputs": "8",
    "model.depth": "3",
    "model.sparsity": "0.5",
    "schedule.name": "constant",
}


def small_config(**overrides: str) -> ConfigDict:
    """Returns the small config; `overrides` are fields with "__" instead of "."."""
    return load_config(DIGITS, SMALL | _fields(overrides))


def arguments(workdir: Path, **overrides: str) -> list[str]:
    """Returns the command line of a small run."""
    fields = SMALL | _fields(overrides)
    return [
        f"--config={DIGITS}",
        f"--workdir={workdir}",
        *(f"--config.{name}={text}" for name, text in fields.items()),
    ]


def run(workdir: Path, **overrides: str) -> None:
    """Runs a small run through `main`, which must succeed."""
    assert main(arguments(workdir, **overrides)) == 0


def start(workdir: Path, **overrides: str) -> subprocess.Popen[str]:
    """Starts a small run in another process."""
    return subprocess.Popen(
        [sys.executable, "-m", "dnw_jax.main", *arguments(workdir, **overrides)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Asserts that both hold the same arrays, bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if left[name].tobytes() != right[name].tobytes()]
    assert not different


def rows(workdir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`, without the values that depend on the clock."""
    all_rows = saved.rows(workdir, split)
    for row in all_rows:
        for timed in ("images_per_second", "input_wait"):
            row.pop(timed, None)
    return all_rows


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Returns what a new Python process prints: some settings of JAX hold for a whole process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below `folder` with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in files}


def _fields(overrides: dict[str, str]) -> dict[str, str]:
    return {name.replace("__", "."): text for name, text in overrides.items()}
