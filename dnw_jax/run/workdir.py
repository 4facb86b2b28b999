"""The files of a workdir: what they are called, and how to load a trained model from them."""

import dataclasses
import json
import operator
import os
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from dnw_jax.config import CONFIG_FILE, differing_fields, load_config, to_json
from dnw_jax.errors import UserError
from dnw_jax.models import build_model
from dnw_jax.platform.agreement import is_first
from dnw_jax.run.checkpoint import Checkpoints
from dnw_jax.run.commit import MARK
from dnw_jax.step.state import TrainState, split

CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WIRING_PICTURES = "wiring"
METRICS = "metrics.jsonl"
EVALUATION = "evaluation.json"
TRACE = "profile"  # the folder of `train.trace.Trace`

# Prefixes of the fields that decide which arrays a model has and what they mean. Two configs that
# differ in one of these fields describe different models.
MODEL_FIELDS = ("model.", "dataset.num_channels", "dataset.num_classes", "ema.decay")
# Exceptions: fields that decide only how a model is computed.
NOT_MODEL_FIELDS = ("model.solver.",)
# Prefixes of the fields that a resumed run must keep: with another value it would be another run.
RUN_FIELDS = (
    *MODEL_FIELDS,
    "seed",
    "num_seeds",
    "batch_size",
    "dtype",
    "dataset.name",
    "dataset.image_size",
)


class TrainedModel(NamedTuple):
    """A model from a checkpoint, with the config that describes it and the step of the checkpoint.

    The model has the averaged parameters if the run averaged them (`ema.decay`).
    """

    model: nnx.Module
    config: ConfigDict
    step: int


def load(workdir: str | Path, step: int | str = "last") -> tuple[nnx.Module, ConfigDict]:
    """Returns a trained model and the config that it was trained with.

    Args:
      workdir: of a run of `python -m dnw_jax.main`. If the run had several seeds, one of its
        folders `seed_*`.
      step: "last", "best" (highest test accuracy), or the number of a step that was kept.

    Raises:
      UserError: the workdir or the step does not exist, or the checkpoint is damaged.
    """
    trained = load_model(workdir, step)
    return trained.model, trained.config


def load_model(
    workdir: str | Path, step: int | str = "last", config: ConfigDict | None = None
) -> TrainedModel:
    """Returns the trained model of a checkpoint, without the state of the optimizer.

    It reads and verifies only the parameters, the variables and, if the run averaged the
    parameters, their average, so the checkpoint may come from any optimizer. It computes no initial
    weights.

    Args:
      workdir, step: as for `load`.
      config: of the same model (`config_changes`), in place of the config in the workdir; for
        instance with other solver settings.

    Raises:
      UserError: as `load`; or the checkpoint does not fit the model of `config`.
    """
    config = config or load_config(f"{workdir}/{CONFIG_FILE}")
    if config.num_seeds > 1:
        raise UserError(
            f"{workdir} holds {config.num_seeds} seeds: name one of them, for instance "
            f"{workdir}/seed_{config.seed}"
        )
    graphdef, params, variables = split(nnx.eval_shape(lambda: build_model(config)))
    average = params if config.ema.decay else None
    like = {"params": params, "variables": variables, "average": average}
    checkpoints = Checkpoints(Path(workdir) / CHECKPOINTS)
    number = _step_number(checkpoints, step, workdir)
    arrays = checkpoints.restore(number, like, whole=False)
    params = arrays["average"] if config.ema.decay else arrays["params"]
    return TrainedModel(nnx.merge(graphdef, params, arrays["variables"]), config, number)


def _step_number(checkpoints: Checkpoints, step: int | str, workdir: str | Path) -> int:
    if step not in ("last", "best"):
        try:
            return int(step) if isinstance(step, str) else operator.index(step)
        except (TypeError, ValueError):
            raise UserError(f"step is {step!r}; it must be 'last', 'best' or a number") from None
    number = checkpoints.best if step == "best" else checkpoints.latest
    if number is None:
        raise UserError(f"{workdir} holds no checkpoint{' that was evaluated' * (step == 'best')}")
    return number


def checkpoint_tree(state: TrainState) -> dict[str, Any]:
    """Returns what a checkpoint holds of a training state."""
    names = ("step", "seed", "params", "variables", "opt_state", "average")
    return {name: getattr(state, name) for name in names}


def restore(state: TrainState, checkpoints: Checkpoints, step: int) -> TrainState:
    """Returns `state` with the arrays of the checkpoint of `step`, placed as those of `state`.

    Raises:
      UserError: as `Checkpoints.restore`; also if the state of the optimizer does not fit.
    """
    return dataclasses.replace(state, **checkpoints.restore(step, checkpoint_tree(state)))


def check_writable(workdir: Path) -> Path:
    """Checks that `workdir` is a folder where files can be written, or that one can be created.

    Returns:
      The folder: `workdir` or the one in which it would be created.

    Raises:
      UserError: it is a file, or it cannot be written.
    """
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "cannot be written" if existing.is_dir() else "is no folder"
        raise UserError(f"workdir is {workdir}; {existing} {problem}. Choose another workdir")
    return existing


def holds_run(workdir: Path) -> bool:
    """Returns whether a run, of one seed or of several, has saved a checkpoint there.

    Without a checkpoint nothing on disk can contradict another config.
    """
    checkpoint = f"{CHECKPOINTS}/*/{MARK}"
    # The folders of several seeds count only below a config: another `seed_1` may be a single run.
    several_seeds = (workdir / CONFIG_FILE).exists() and any(workdir.glob(f"seed_*/{checkpoint}"))
    return several_seeds or any(workdir.glob(checkpoint))


def create_workdir(workdir: Path, config: ConfigDict) -> None:
    """Creates the workdir if it does not exist, and writes the config into it.

    Raises:
      UserError: the workdir cannot be written.
    """
    try:
        if is_first():
            workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CONFIG_FILE, to_json(config))
    except OSError as error:
        raise UserError(
            f"workdir is {workdir}; it cannot be written: {error}. Choose another workdir"
        ) from error


def config_changes(
    workdir: Path, config: ConfigDict, fixed: tuple[str, ...] = MODEL_FIELDS
) -> list[str]:
    """Returns how `config` differs from the config in `workdir`.

    Args:
      workdir: of a run.
      config: the config of now.
      fixed: prefixes of the fields that must be equal.

    Returns:
      A line "field: value in the workdir != value now" for each field that differs.

    Raises:
      UserError: some of the `fixed` fields differ; the message names all of them.
    """
    changes = differing_fields(load_config(f"{workdir}/{CONFIG_FILE}"), config)
    forbidden = [
        line
        for name, line in changes.items()
        if name.startswith(fixed) and not name.startswith(NOT_MODEL_FIELDS)
    ]
    if forbidden:
        raise UserError(
            f"workdir is {workdir}; its run has another model or recipe (there != now):\n  "
            + "\n  ".join(forbidden)
            + "\nChoose another workdir, or the config that this run was started with."
        )
    return list(changes.values())


def write_evaluation(workdir: Path, values: dict[str, Any]) -> None:
    """Writes the result of an evaluation over all test examples."""
    write_text(workdir / EVALUATION, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file on process 0, in one piece: after a kill the file is the old or the new one."""
    if not is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
