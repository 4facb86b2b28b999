"""Builds the model of a configuration, and finds the layers of a model that choose edges."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from dnw_jax.edges import RULES, Rule
from dnw_jax.edges.rules import L1Anneal, TargetedDropout
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.continuous_time import ContinuousTime
from dnw_jax.graphs.discrete_time import DiscreteTime
from dnw_jax.graphs.nodes import Nodes
from dnw_jax.graphs.sparse_layer import SparseLayer
from dnw_jax.graphs.time_graph import Dynamics, TimeGraph
from dnw_jax.models.mobilenet import MobileNetGraphs, MobileNetV1, stages
from dnw_jax.models.resnet import ARCHS, ResNet
from dnw_jax.models.tiny import Graph, Stem, TinyClassifier


def build_model(config: ConfigDict) -> nnx.Module:
    """Returns the model that `config` describes, with initial weights from `config.seed`.

    Args:
      config: a complete configuration, as `load_config` returns it.

    Returns:
      A module. `model(images, train=False)` gives logits, float32 [batch, classes]; `images` are
      float32 [batch, height, width, channels], normalised. `model(images, train=True, key=key)`
      also updates the running statistics of the norms; only rules that draw random numbers need
      the key. In evaluation the module may be an argument of a JAX transform or captured by a
      closure. In training, pass its state as an argument and merge the module inside the transform
      (`nnx.split`, `nnx.merge(..., copy=True)`), as with Flax's `nnx.BatchNorm`.
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
    rule = _rule(model)
    if model.wiring == "static":
        inner = (model.num_nodes - model.num_inputs) // (model.depth - 1)
        sizes = (model.num_inputs, *[inner] * (model.depth - 1))
        nodes = Nodes(model.num_nodes, rngs=rngs)
        return BlockedGraph(
            sizes, nodes, model.sparsity, rule, inner_outputs=model.num_outputs, rngs=rngs
        )
    dynamics: Dynamics = DiscreteTime(model.depth)
    if model.wiring == "continuous":
        solver = model.solver
        dynamics = ContinuousTime(
            solver.name, solver.rtol, solver.atol, solver.step_size, solver.max_steps
        )
    return TimeGraph(model.num_nodes, model.num_outputs, model.sparsity, rule, dynamics, rngs=rngs)


def _build_mbv1(config: ConfigDict, rngs: nnx.Rngs) -> MobileNetGraphs:
    dataset, model = config.dataset, config.model
    return MobileNetGraphs(
        dataset.num_channels,
        dataset.num_classes,
        dataset.image_size,
        model.sparsity,
        _rule(model),
        small=model.small,
        stages=stages(model.width),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _build_mobilenet(config: ConfigDict, rngs: nnx.Rngs) -> MobileNetV1:
    dataset = config.dataset
    return MobileNetV1(
        dataset.num_channels,
        dataset.num_classes,
        dataset.image_size,
        config.model.width,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _build_resnet(config: ConfigDict, rngs: nnx.Rngs) -> ResNet:
    dataset, model = config.dataset, config.model
    return ResNet(
        ARCHS[model.arch],
        dataset.num_channels,
        dataset.num_classes,
        model.sparsity,
        _rule(model),
        dense_first=model.first_layer == "dense",
        small_images=model.small_images,
        width=model.width,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _rule(model: ConfigDict) -> Rule:
    """The rule `model.edges` with its settings."""
    match RULES[model.edges]:
        case TargetedDropout() as rule:
            rho = model.sparsity if model.rho is None else model.rho
            return dataclasses.replace(rule, rho=rho)
        case L1Anneal() as rule:
            return dataclasses.replace(rule, l1=model.l1, anneal=model.anneal)
        case rule:
            return rule


_BUILDERS = {
    "tiny": _build_tiny,
    "mbv1": _build_mbv1,
    "mobilenet": _build_mobilenet,
    "resnet": _build_resnet,
}


def edge_layers(model: nnx.Module) -> dict[str, SparseLayer]:
    """Returns every layer of `model` that chooses edges, by its path ("graph", "layer1.0.conv1").

    The layers are those of `model`, not copies.
    """
    return {
        ".".join(map(str, path)).removesuffix(".edges"): layer
        for path, layer in nnx.iter_graph(model)  # `nnx.iter_modules` is newer than Flax 0.11
        if isinstance(layer, SparseLayer)
    }


def wiring(model: nnx.Module) -> dict[str, Bool[Array, "..."]]:
    """Returns the real edges of every layer that chooses edges, by the layer's path.

    Returns:
      Masks, true where an edge is real: [sources, targets] for a graph or a linear layer, the
      kernel's shape [height, width, inputs, outputs] for a convolution.
    """
    return {name: layer.real_edges() for name, layer in edge_layers(model).items()}
