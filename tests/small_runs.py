"""Runs that a test can afford: 512 synthetic images of 8x8 pixels, a graph of 24 nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dnw_jax.config import from_json, load_config
from dnw_jax.main import main
from dnw_jax.models import build_model
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import checkpoint_tree
from dnw_jax.train import create_train_state

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
    """The small config; `overrides` as fields with "__" for "."."""
    return load_config(DIGITS, SMALL | _fields(overrides))


def arguments(workdir: Path, **overrides: str) -> list[str]:
    """The command line of a small run."""
    fields = SMALL | _fields(overrides)
    return [
        f"--config={DIGITS}",
        f"--workdir={workdir}",
        *(f"--config.{name}={text}" for name, text in fields.items()),
    ]


def run(workdir: Path, **overrides: str) -> None:
    """A small run through `main`, which must succeed."""
    assert main(arguments(workdir, **overrides)) == 0


def start(workdir: Path, **overrides: str) -> subprocess.Popen[str]:
    """A small run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dnw_jax.main", *arguments(workdir, **overrides)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoint_steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by name."""
    config = from_json((workdir / "config.json").read_text())
    state = create_train_state(config, build_model(config), steps_per_epoch=1)
    like = checkpoint_tree(state)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        leaves = jax.tree_util.tree_leaves_with_path(checkpoints.restore(step, like))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    """Both hold the same arrays, bit for bit."""
    assert left.keys() == right.keys()
    different = [name for name in left if left[name].tobytes() != right[name].tobytes()]
    assert not different


def rows(workdir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, without the values that depend on the clock."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in every:
        for of_the_clock in ("images_per_second", "input_wait"):
            row.pop(of_the_clock, None)
    return [row for row in every if split in (None, row["split"])]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in files}


def _fields(overrides: dict[str, str]) -> dict[str, str]:
    return {name.replace("__", "."): text for name, text in overrides.items()}
