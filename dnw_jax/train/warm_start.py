"""Starting from another run's weights: fine-tuning, lottery tickets, or any other warm start."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from ml_collections import ConfigDict

from dnw_jax.errors import UserError
from dnw_jax.models import edge_layers
from dnw_jax.run import workdir as layout
from dnw_jax.step.state import TrainState, split

_LEARNT = (nnx.Param, nnx.BatchStat)


def warm_start(state: TrainState, config: ConfigDict) -> TrainState:
    """`state` with the weights of the run that `config.init_from` names.

    The rules adopt them (`Rule.adopt_weights`): fine_tune and lottery_ticket take the edges of
    these weights, and a lottery ticket then goes back to that run's weights at step 0.

    Raises:
      UserError: `init_from` names no run or checkpoint, one of another model, or for these two
        rules one whose graph was not complete.
    """
    workdir, step = _source(Path(config.init_from))
    source, source_config = layout.load(workdir, step)
    rule, source_rule = (each.model.get("edges") for each in (config, source_config))
    if rule in ("fine_tune", "lottery_ticket") and source_rule != "complete":
        raise UserError(
            f"init_from is {config.init_from}, a run with model.edges={source_rule}; {rule} starts "
            "from a trained complete graph: train one with --config.model.edges=complete first"
        )
    model = state.model()
    _copy(model, source, config.init_from)
    for layer in edge_layers(model).values():
        layer.adopt()
    if rule == "lottery_ticket":
        _copy(model, layout.load(workdir, 0)[0], config.init_from)
    _, params, variables = split(model)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, variables=variables, average=average)


def _source(path: Path) -> tuple[Path, int | str]:
    if (path / layout.CONFIG).is_file():
        return path, "last"
    if path.name.isdecimal() and path.parent.name == layout.CHECKPOINTS:
        return path.parent.parent, int(path.name)
    raise UserError(
        f"init_from is {path}; it must be the workdir of a run (which holds a {layout.CONFIG}) or "
        f"one of its checkpoints, such as runs/complete/{layout.CHECKPOINTS}/1000"
    )


def _copy(model: nnx.Module, source: nnx.Module, name: str) -> None:
    """What `source` learnt, into `model`."""
    theirs = nnx.state(source, _LEARNT)
    expected, found = (_shapes(nnx.state(model, _LEARNT)), _shapes(theirs))
    different = [
        f"  {path}: expected {expected.get(path, 'nothing')}, found {found.get(path, 'nothing')}"
        for path in sorted(expected | found)
        if expected.get(path) != found.get(path)
    ]
    if different:
        raise UserError(
            f"init_from is {name}; its weights do not fit this model:\n" + "\n".join(different)
        )
    nnx.update(model, theirs)


def _shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    arrays = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
    return {path: array.shape for path, array in arrays.items()}
