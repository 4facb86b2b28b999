"""What a workdir holds, and how to find a run in it again."""

import dataclasses
import json
import operator
import os
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from dnw_jax.config import CONFIG_FILE, differing_fields, load_config, to_json
from dnw_jax.errors import UserError
from dnw_jax.models import build_model
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.step.state import TrainState, create_train_state

CONFIG = CONFIG_FILE
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WIRING = "wiring"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
PROFILE = "profile"

# What a model is made of; a checkpoint of another does not fit, or means something else.
MODEL = ("model.", "dataset.num_channels", "dataset.num_classes", "ema.decay")
# How a model is run: no checkpoint knows of it.
NOT_MODEL = ("model.solver.",)
# What a run is made of besides: with another of these it would not be the same run.
RUN = (*MODEL, "seed", "num_seeds", "batch_size", "dtype", "dataset.name", "dataset.image_size")


def load(workdir: str | Path, step: int | str = "last") -> tuple[nnx.Module, ConfigDict]:
    """A trained model and the config it was trained with.

    Args:
      workdir: of a run of `python -m dnw_jax.main`.
      step: "last", "best" (highest test accuracy), or the number of a step that was kept.

    Raises:
      UserError: there is no such workdir, step or intact checkpoint.
    """
    state, config = load_state(workdir, step)
    return state.model(), config


def load_state(
    workdir: str | Path, step: int | str = "last", config: ConfigDict | None = None
) -> tuple[TrainState, ConfigDict]:
    """As `load`, but with all that training carries; `config`: of the same model, run otherwise."""
    config = config or load_config(f"{workdir}/{CONFIG}")
    if config.num_seeds > 1:
        raise UserError(
            f"{workdir} holds {config.num_seeds} seeds: name one of them, for instance "
            f"{workdir}/seed_{config.seed}"
        )
    # The optimizer's arrays are the same whatever the length of the run.
    state = create_train_state(config, build_model(config), steps_per_epoch=1)
    with Checkpoints(Path(workdir) / CHECKPOINTS, config.checkpoint.keep) as checkpoints:
        return restore(state, checkpoints, _find(checkpoints, step, workdir)), config


def _find(checkpoints: Checkpoints, step: int | str, workdir: str | Path) -> int:
    if step not in ("last", "best"):
        try:
            return int(step) if isinstance(step, str) else operator.index(step)
        except (TypeError, ValueError):
            raise UserError(f"step is {step!r}; it must be 'last', 'best' or a number") from None
    found = checkpoints.best if step == "best" else checkpoints.latest
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint{' that was evaluated' * (step == 'best')}")
    return found


def checkpoint_tree(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds of a state."""
    names = ("step", "seed", "params", "variables", "opt_state", "average")
    return {name: getattr(state, name) for name in names}


def restore(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """`state` with the arrays of the checkpoint, placed as its own."""
    return dataclasses.replace(state, **checkpoints.restore(step, checkpoint_tree(state)))


def check_writable(workdir: Path) -> None:
    """Raises UserError if `workdir` is a file, or lies where nothing can be written."""
    place = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        problem = "cannot be written" if place.is_dir() else "is no folder"
        raise UserError(f"workdir is {workdir}; {place} {problem}")


def holds_run(workdir: Path) -> bool:
    """Whether a run of one seed or of several has saved something there."""
    # Without a checkpoint there is nothing that another model could contradict.
    saved = f"{CHECKPOINTS}/*/"
    of_seeds = (workdir / CONFIG).exists() and any(workdir.glob(f"seed_*/{saved}"))
    return any(workdir.glob(saved)) or of_seeds


def create_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir if need be, and notes the config in it.

    Raises:
      UserError: the workdir cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CONFIG, to_json(config))
    except OSError as error:
        raise UserError(f"workdir is {workdir}; it cannot be written: {error}") from error


def config_changes(workdir: Path, config: ConfigDict, fixed: tuple[str, ...] = MODEL) -> list[str]:
    """What differs from the config of the run in `workdir`, as "field: there != now".

    Raises:
      UserError: a field that begins with one of `fixed` differs; all such are named.
    """
    changed = differing_fields(load_config(f"{workdir}/{CONFIG}"), config)
    contradicting = [
        line
        for name, line in changed.items()
        if name.startswith(fixed) and not name.startswith(NOT_MODEL)
    ]
    if contradicting:
        raise UserError(
            f"workdir is {workdir}; the run in it is of another model or recipe (there != now):\n  "
            + "\n  ".join(contradicting)
            + "\nChoose another workdir, or the config that this one was started with."
        )
    return list(changed.values())


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one."""
    if jax.process_index() != 0:
        return
    half = path.with_name(path.name + ".tmp")
    half.write_text(text)
    os.replace(half, path)


def write_evaluation(workdir: Path, values: dict[str, Any]) -> None:
    """Notes the result of an evaluation over all test examples."""
    write_text(workdir / EVALUATION, json.dumps(values, indent=2) + "\n")
