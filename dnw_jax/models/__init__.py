"""Models by name, and what every model that chooses edges can be asked."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from dnw_jax.edges import RULES, edge_budget
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.continuous_time import ContinuousTime
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.edge_graph import EdgeGraph
from dnw_jax.graphs.time_graph import Dynamics, TimeGraph
from dnw_jax.models.tiny import Graph, Stem, TinyClassifier


def build_model(config: ConfigDict) -> nnx.Module:
    """The model that `config` describes, initialised from `config.seed`.

    `model(images, train=False)` gives logits [batch, classes]; images are float32
    [batch, height, width, channels], normalised. `train=True` may need `key=`.
    """
    return _BUILDERS[config.model.name](config, nnx.Rngs(config.seed))


def _build_tiny(config: ConfigDict, rngs: nnx.Rngs) -> TinyClassifier:
    model, dtype = config.model, jnp.dtype(config.dtype)
    return TinyClassifier(
        Stem(config.dataset.num_channels, model.num_inputs, dtype=dtype, rngs=rngs),
        _build_tiny_graph(model, rngs),
        model.num_outputs,
        config.dataset.num_classes,
        dtype=dtype,
        rngs=rngs,
    )


def _build_tiny_graph(model: ConfigDict, rngs: nnx.Rngs) -> Graph:
    rule = RULES[model.edges]
    num_edges = edge_budget(model.num_nodes**2, model.sparsity)
    if model.wiring == "static":
        inner = (model.num_nodes - model.num_inputs) // (model.depth - 1)
        sizes = (model.num_inputs, *[inner] * (model.depth - 1))
        return BlockedGraph(sizes, model.num_outputs, num_edges, rule, rngs=rngs)
    dynamics: Dynamics = DiscreteTime(model.depth)
    if model.wiring == "continuous":
        solver = model.solver
        dynamics = ContinuousTime(
            solver.name, solver.rtol, solver.atol, solver.step_size, solver.max_steps
        )
    return TimeGraph(model.num_nodes, model.num_outputs, num_edges, rule, dynamics, rngs=rngs)


_BUILDERS = {"tiny": _build_tiny}


def edge_layers(model: nnx.Module) -> dict[str, EdgeGraph]:
    """Every layer of `model` that chooses edges, by its path."""
    return {
        ".".join(map(str, path)).removesuffix(".edges"): layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, EdgeGraph)
    }


def wiring(model: nnx.Module) -> dict[str, Bool[Array, "..."]]:
    """The real edges of every layer that chooses some: {path: bool [sources, targets]}."""
    return {name: layer.mask() for name, layer in edge_layers(model).items()}
