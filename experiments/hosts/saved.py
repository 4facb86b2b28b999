"""What a run has saved: its steps, its arrays, its rows of metrics."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dnw_jax
from dnw_jax.config import from_json
from dnw_jax.models import build_model
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.workdir import checkpoint_tree, restore
from dnw_jax.train import TrainState, create_train_state


def steps(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints, ascending."""
    return Checkpoints(workdir / "checkpoints").steps


def state(workdir: Path, step: int) -> TrainState:
    """Returns the training state of a checkpoint."""
    like = _state_shapes((workdir / "config.json").read_text())
    return restore(like, Checkpoints(workdir / "checkpoints"), step)


@functools.cache
def _state_shapes(config_json: str) -> TrainState:
    config = from_json(config_json)
    return jax.eval_shape(
        lambda: create_train_state(config, build_model(config), steps_per_epoch=1)
    )


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint, by name."""
    tree = checkpoint_tree(state(workdir, step))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same_bits(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Returns whether both hold the same arrays, bit for bit."""
    return left.keys() == right.keys() and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def largest_difference(
    left: dict[str, np.ndarray],
    right: dict[str, np.ndarray],
    parts: tuple[str, ...] = ("params", "variables"),
) -> float:
    """Returns the largest absolute difference of a number in these parts of two states."""
    assert left.keys() == right.keys()
    return max(
        float(np.max(np.abs(left[name].astype(float) - right[name].astype(float)), initial=0.0))
        for name in left
        if name.startswith(tuple(f"['{part}']" for part in parts))
    )


def num_flipped(left: Path, right: Path, step: int) -> int:
    """Returns how many edges are real in one of two runs alone."""
    ours, expected = (dnw_jax.wiring(dnw_jax.load(run, step)[0]) for run in (left, right))
    return sum(int(np.sum(ours[name] != expected[name])) for name in expected)


def rows(workdir: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`, of one split or of both."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if split in (None, row["split"])]
