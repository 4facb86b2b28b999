"""Starts a run from the weights of another run: fine-tuning, lottery tickets, any warm start."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from ml_collections import ConfigDict

from dnw_jax.config import CONFIG_FILE
from dnw_jax.errors import UserError, differences
from dnw_jax.models import edge_layers
from dnw_jax.run.workdir import CHECKPOINTS, load_model
from dnw_jax.step.state import TrainState, split

_COPIED = (nnx.Param, nnx.BatchStat)


def warm_start(state: TrainState, config: ConfigDict) -> TrainState:
    """Returns `state` with the weights of the run that `config.init_from` names.

    Then the rules see these weights: `fine_tune` and `lottery_ticket` choose their edges from them,
    for the whole run. A lottery ticket keeps this choice, but starts from that run's weights of
    step 0.

    Args:
      state: of a new run. The state of its optimizer stays.
      config: of the new run.

    Raises:
      UserError: `init_from` names no run or checkpoint, or the weights do not fit the model; or the
        rule is `fine_tune` or `lottery_ticket` and the graph of that run was not complete.
    """
    workdir, step = _workdir_and_step(Path(config.init_from))
    source = load_model(workdir, step)
    rule, source_rule = config.model.get("edges"), source.config.model.get("edges")
    if rule in ("fine_tune", "lottery_ticket") and source_rule != "complete":
        raise UserError(
            f"init_from is {config.init_from}, a run with model.edges={source_rule}; {rule} starts "
            "from a trained complete graph: train one with --config.model.edges=complete first"
        )
    model = state.model()
    _copy_weights(source.model, model, config.init_from)
    for layer in edge_layers(model).values():
        layer.adopt()
    if rule == "lottery_ticket":
        _copy_weights(load_model(workdir, 0).model, model, config.init_from)
    _, params, variables = split(model)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, variables=variables, average=average)


def _workdir_and_step(init_from: Path) -> tuple[Path, int | str]:
    if (init_from / CONFIG_FILE).is_file():
        return init_from, "last"
    if init_from.name.isdecimal() and init_from.parent.name == CHECKPOINTS:
        return init_from.parent.parent, int(init_from.name)
    raise UserError(
        f"init_from is {init_from}; it must be the workdir of a run (which holds a "
        f"{CONFIG_FILE}) or one of its checkpoints, such as runs/complete/{CHECKPOINTS}/1000"
    )


def _copy_weights(source: nnx.Module, model: nnx.Module, init_from: str) -> None:
    """Copies parameters and running statistics of `source` into `model`."""
    weights = nnx.state(source, _COPIED)
    different = differences(_shapes(nnx.state(model, _COPIED)), _shapes(weights))
    if different:
        raise UserError(
            f"init_from is {init_from}; its weights do not fit this model:\n"
            + "\n".join(different)
            + "\nName a run of the same model, or set the model's fields as in its config.json."
        )
    nnx.update(model, weights)


def _shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
    return {path: array.shape for path, array in arrays.items()}
