"""The published PyTorch weights -> our models. The only file that knows the reference's names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from ml_collections import ConfigDict

from dnw_jax.errors import UserError
from dnw_jax.models import build_model
from dnw_jax.models.mobilenet import stages
from dnw_jax.models.resnet import ARCHS

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How PyTorch lays out an array of ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    reference_shape: Callable[[Shape], Shape]


_VECTOR = Layout(lambda a: a, lambda shape: shape)
_LINEAR = Layout(lambda a: a.T, lambda shape: shape[::-1])
# [targets, sources, 1, 1] -> [sources, targets]
_EDGES = Layout(lambda a: a[:, :, 0, 0].T, lambda shape: (*shape[::-1], 1, 1))
_ABSOLUTE = Layout(lambda a: abs(a[:, :, 0, 0].T), _EDGES.reference_shape)
# [out, in, height, width] -> [height, width, in, out]
_CONV = Layout(
    lambda a: a.transpose(2, 3, 1, 0), lambda shape: (shape[3], shape[2], shape[0], shape[1])
)
# [nodes, 1, height, width] -> [height, width, nodes]
_ABSOLUTE_CONV = Layout(lambda a: abs(_CONV.to_ours(a)), _CONV.reference_shape)
_DEPTHWISE = Layout(
    lambda a: a[:, 0].transpose(1, 2, 0), lambda shape: (shape[2], 1, shape[0], shape[1])
)


class Source(NamedTuple):
    """Where one array of ours comes from: several arrays are concatenated along the last axis."""

    names: tuple[str, ...]
    layout: Layout
    sizes: tuple[int, ...] = ()  # of our last axis, where there are several


Variable = tuple[str, ...]  # the path of one of ours
Sources = dict[Variable, Source]


def load_reference(source: str | Path | Mapping[str, Any], config: ConfigDict) -> nnx.Module:
    """The model of `config` with the published code's weights.

    Args:
      source: {reference name: array} as in a PyTorch state_dict, with or without the prefix
        `module.`; or the path of a `.pt` file that holds one (needs the extra `reference`).
      config: which model; its seed does not matter.

    Raises:
      UserError: names that are unknown, missing or of the wrong shape: all of them in one message.
    """
    arrays = source if isinstance(source, Mapping) else _read_checkpoint(Path(source))
    arrays = {name.removeprefix("module."): np.asarray(array) for name, array in arrays.items()}
    graphdef, state = nnx.split(build_model(config))
    values = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    sources = _SOURCES[config.model.name](config)
    _check(
        arrays,
        expected={
            name: source.layout.reference_shape((*shape[:-1], size) if size else shape)
            for path, source in sources.items()
            for shape in [values[path].shape]
            for name, size in zip(source.names, source.sizes or (0,), strict=True)
        },
        dispensable=_dispensable(sources),
    )
    for path, (names, layout, _) in sources.items():
        value = np.concatenate([layout.to_ours(arrays[name]) for name in names], axis=-1)
        values[path] = jnp.asarray(value, values[path].dtype)
    return nnx.merge(graphdef, traverse_util.unflatten_dict(values))


def _check(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, Shape], dispensable: set[str]
) -> None:
    """One error that lists every name that does not fit."""
    problems = [
        f"missing: {name} {shape}" for name, shape in expected.items() if name not in arrays
    ]
    for name, array in arrays.items():
        if name in expected and array.shape != expected[name]:
            problems.append(f"wrong shape: {name} {array.shape}, the model has {expected[name]}")
        elif name.endswith("graph.mask") and name in dispensable and not np.all(array == 1):
            problems.append(f"a mask that is not all ones: {name}, and the model's rule keeps none")
        elif (
            name.endswith("graph.mask")
            and name in expected
            and not np.all((array == 0) | (array == 1))
        ):
            problems.append(f"a mask that is not all zeros and ones: {name}")
        elif name not in expected and name not in dispensable:
            problems.append(f"unknown: {name} {array.shape}")
    if problems:
        raise UserError(
            "the reference weights do not fit the model of this config "
            "(is it the right wiring, rule and size?):\n  " + "\n  ".join(problems)
        )


def _dispensable(sources: Mapping[tuple[str, ...], Source]) -> set[str]:
    """Buffers of the published code that our models do without."""
    names = {name for source in sources.values() for name in source.names}
    norms = {name.removesuffix("running_mean") for name in names if name.endswith("running_mean")}
    graphs = {name.removesuffix("weight") for name in names if name.endswith("graph.weight")}
    return (
        {"zeros", "odesolve.integration_time"}
        | {f"{norm}num_batches_tracked" for norm in norms}
        | {f"{graph}mask" for graph in graphs} - names
    )


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"source is {path}; there is no such file")
    try:
        import torch  # noqa: PLC0415  an optional extra
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'dnw-jax[reference]'") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"source is {path}; it is no PyTorch file of plain arrays. Save the state_dict alone: "
            "torch.save({'model': checkpoint['model']}, path)"
        ) from error
    arrays = next((loaded[key] for key in ("model", "state_dict") if key in loaded), loaded)
    return {name: array.numpy() for name, array in arrays.items()}


def _tiny_sources(config: ConfigDict) -> Sources:
    """Our variable's path -> where it comes from, for the tiny classifiers."""
    model = config.model
    node_prefix = "odesolve.odefunc." if model.wiring == "continuous" else ""
    sources = {
        ("stem", "conv", "kernel"): Source(("downsample.0.weight",), _CONV),
        ("stem", "conv", "bias"): Source(("downsample.0.bias",), _VECTOR),
        **_batch_norm(("stem", "conv_norm"), "downsample.1"),
        ("stem", "depthwise_kernel"): Source(("downsample.3.weight",), _DEPTHWISE),
        ("stem", "depthwise_bias"): Source(("downsample.3.bias",), _VECTOR),
        ("stem", "mix", "kernel"): Source(("downsample.4.weight",), _CONV),
        ("stem", "mix", "bias"): Source(("downsample.4.bias",), _VECTOR),
        **_batch_norm(("stem", "mix_norm"), "downsample.5"),
        **_edges(("graph", "edges", "weight"), f"{node_prefix}graph", config),
        ("graph", "nodes", "kernel"): Source((f"{node_prefix}conv.weight",), _DEPTHWISE),
        **_linear(("head",), "fc"),
    }
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        if model.wiring == "static":  # one norm for each block
            names = tuple(f"norm.{block}.{theirs}" for block in range(model.depth))
            inner = (model.num_nodes - model.num_inputs) // (model.depth - 1)
            sizes = (model.num_inputs, *[inner] * (model.depth - 1))
            source = Source(names, _VECTOR, sizes)
        else:
            source = Source((f"{node_prefix}norm.{theirs}",), _VECTOR)
        sources[("graph", "nodes", ours)] = source
    return sources


def _batch_norm(path: Variable, name: str, sizes: tuple[int, ...] = ()) -> Sources:
    """A norm, or with `sizes` the norms `name.0`, `name.1`, ... of so many channels as one."""
    pairs = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    names = [f"{name}.{index}" for index in range(len(sizes))] or [name]
    return {
        (*path, ours): Source(tuple(f"{each}.{theirs}" for each in names), _VECTOR, sizes)
        for ours, theirs in pairs.items()
    }


def _mbv1_sources(config: ConfigDict) -> Sources:
    """Our variable's path -> where it comes from, for the chain of graphs."""
    sources = {
        ("stem", "kernel"): Source(("conv1.weight",), _CONV),
        **_batch_norm(("norm",), "bn"),
    }
    for index, stage in enumerate(stages(config.model.width)):
        graph, theirs, sizes = f"graph_{index}", f"layers.{index}", stage.block_sizes[:-1]
        kernels = (f"{theirs}.downsample.0.weight", f"{theirs}.conv.weight")[: len(sizes)]
        kernel_sizes = (sizes[0], sum(sizes[1:]))[: len(sizes)]
        sources |= {
            (graph, "nodes", "kernel"): Source(kernels, _DEPTHWISE, kernel_sizes),
            **_batch_norm((graph, "nodes", "norm"), f"{theirs}.norm", sizes),
            **_edges((graph, "edges", "weight"), f"{theirs}.graph", config),
        }
    if config.model.small:
        return sources | _edges(("head", "kernel"), "linear.graph", config)
    return sources | _linear(("head",), "linear")


def _mobilenet_sources(config: ConfigDict) -> Sources:
    """Our variable's path -> where it comes from, for the dense baseline."""
    del config
    sources = {
        ("stem", "kernel"): Source(("conv1.weight",), _CONV),
        **_batch_norm(("norm",), "bn1"),
        **_linear(("head",), "linear"),
    }
    for index in range(13):
        layer, theirs = f"layer_{index}", f"layers.{index}"
        sources |= {
            (layer, "depthwise_kernel"): Source((f"{theirs}.conv1.weight",), _DEPTHWISE),
            **_batch_norm((layer, "depthwise_norm"), f"{theirs}.bn1"),
            (layer, "mix", "kernel"): Source((f"{theirs}.conv2.weight",), _CONV),
            **_batch_norm((layer, "mix_norm"), f"{theirs}.bn2"),
        }
    return sources


def _resnet_sources(config: ConfigDict) -> Sources:
    """Our variable's path -> where it comes from: the names are the published ones."""
    arch = ARCHS[config.model.arch]
    # Under targeted dropout as in `_edges`.
    dropout = config.model.edges.startswith("targeted_dropout")
    layout = _ABSOLUTE_CONV if dropout else _CONV

    def convolution(name: str) -> Sources:
        return {(*name.split("."), "kernel"): Source((f"{name}.weight",), layout)}

    def norm(name: str) -> Sources:
        return _batch_norm(tuple(name.split(".")), name)

    sources = {**convolution("conv1"), **norm("bn1"), **convolution("fc")}
    for layer, num_blocks in enumerate(arch.blocks, start=1):
        for index in range(num_blocks):
            block = f"layer{layer}.{index}"
            for each in range(1, 4 if arch.bottleneck else 3):
                sources |= convolution(f"{block}.conv{each}") | norm(f"{block}.bn{each}")
            if index == 0 and (layer > 1 or arch.bottleneck):
                sources |= convolution(f"{block}.downsample.0") | norm(f"{block}.downsample.1")
    return sources


def _edges(path: Variable, name: str, config: ConfigDict) -> Sources:
    """An edge matrix, and the mask of the rules that keep one."""
    # Under targeted dropout the published code computes with |w|, whatever the signs it keeps.
    layout = _ABSOLUTE if config.model.edges.startswith("targeted_dropout") else _EDGES
    sources = {path: Source((f"{name}.weight",), layout)}
    if config.model.edges in ("random", "fine_tune", "lottery_ticket"):
        sources[(*path[:-1], "state")] = Source((f"{name}.mask",), _EDGES)
    return sources


def _linear(path: Variable, name: str) -> Sources:
    return {
        (*path, "kernel"): Source((f"{name}.weight",), _LINEAR),
        (*path, "bias"): Source((f"{name}.bias",), _VECTOR),
    }


_SOURCES = {
    "tiny": _tiny_sources,
    "mbv1": _mbv1_sources,
    "mobilenet": _mobilenet_sources,
    "resnet": _resnet_sources,
}
