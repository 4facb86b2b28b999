"""Loads the published PyTorch weights. The only file that knows the reference's names."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from ml_collections import ConfigDict

from dnw_jax.errors import UserError
from dnw_jax.models import build_model
from dnw_jax.models.mobilenet import stages

Shape = tuple[int, ...]
VariablePath = tuple[str, ...]  # such as ("stem", "conv", "kernel")


class Layout(NamedTuple):
    """How PyTorch lays out one kind of array.

    Attributes:
      convert: PyTorch's array -> an array in this package's layout.
      torch_shape: the shape of an array here -> the shape of PyTorch's.
    """

    convert: Callable[[np.ndarray], np.ndarray]
    torch_shape: Callable[[Shape], Shape]


def _absolute(layout: Layout) -> Layout:
    """Takes |w|: the published code computes with it under targeted dropout, and keeps signs."""
    return Layout(lambda array: abs(layout.convert(array)), layout.torch_shape)


_VECTOR = Layout(lambda array: array, lambda shape: shape)
_LINEAR = Layout(lambda array: array.T, lambda shape: shape[::-1])
# [targets, sources, 1, 1] -> [sources, targets]
_EDGES = Layout(lambda array: array[:, :, 0, 0].T, lambda shape: (*shape[::-1], 1, 1))
# [out, in, height, width] -> [height, width, in, out]
_CONV = Layout(
    lambda array: array.transpose(2, 3, 1, 0),
    lambda shape: (shape[3], shape[2], shape[0], shape[1]),
)
# [nodes, 1, height, width] -> [height, width, nodes]
_DEPTHWISE = Layout(
    lambda array: array[:, 0].transpose(1, 2, 0), lambda shape: (shape[2], 1, shape[0], shape[1])
)


class Published(NamedTuple):
    """The published arrays that make up one variable, concatenated along its last axis.

    Attributes:
      names: in the published state_dict.
      layout: of each array.
      sizes: of each array along the variable's last axis; empty if `names` has one name.
    """

    names: tuple[str, ...]
    layout: Layout
    sizes: tuple[int, ...] = ()


Table = dict[VariablePath, Published]


def load_reference(source: str | Path | Mapping[str, Any], config: ConfigDict) -> nnx.Module:
    """Returns the model of `config` with the weights of the published code.

    Args:
      source: {reference name: array} like a PyTorch state_dict, with or without the prefix
        `module.`; or the path of a `.pt` file that holds one (needs the extra `reference`).
      config: describes the model; its seed does not matter.

    Raises:
      UserError: lists all names that are unknown, missing or of the wrong shape; or the file
        cannot be read.
    """
    arrays = source if isinstance(source, Mapping) else _read_checkpoint(Path(source))
    arrays = {name.removeprefix("module."): np.asarray(array) for name, array in arrays.items()}
    graphdef, state = nnx.split(build_model(config))
    variables = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    table = _table(config, variables)
    expected_shapes: dict[str, Shape] = {}
    for path, published in table.items():
        expected_shapes |= _torch_shapes(published, variables[path].shape)
    _check(arrays, expected_shapes)
    for path, published in table.items():
        parts = [published.layout.convert(arrays[name]) for name in published.names]
        variables[path] = jnp.asarray(np.concatenate(parts, axis=-1), variables[path].dtype)
    return nnx.merge(graphdef, traverse_util.unflatten_dict(variables))


def _torch_shapes(published: Published, shape: Shape) -> dict[str, Shape]:
    """The shape of each published array of a variable of `shape`."""
    sizes = published.sizes or shape[-1:]
    return {
        name: published.layout.torch_shape((*shape[:-1], size))
        for name, size in zip(published.names, sizes, strict=True)
    }


def _check(arrays: Mapping[str, np.ndarray], expected_shapes: Mapping[str, Shape]) -> None:
    """Raises one UserError that lists every array that does not fit."""
    unused = _unused_buffers(expected_shapes)
    problems = [
        f"missing: {name} {shape}" for name, shape in expected_shapes.items() if name not in arrays
    ]
    for name, array in arrays.items():
        is_mask = name.endswith("graph.mask")
        if name in unused:
            if is_mask and not np.all(array == 1):
                problems.append(
                    f"a mask that is not all ones: {name}; the rule of this config keeps no mask"
                )
        elif name not in expected_shapes:
            problems.append(f"unknown: {name} {array.shape}")
        elif array.shape != expected_shapes[name]:
            problems.append(
                f"wrong shape: {name} {array.shape}, the model has {expected_shapes[name]}"
            )
        elif is_mask and not np.all((array == 0) | (array == 1)):
            problems.append(f"a mask that is not all zeros and ones: {name}")
    if problems:
        raise UserError(
            "the reference weights do not fit the model of this config "
            "(is it the right wiring, rule and size?):\n  " + "\n  ".join(problems)
        )


def _unused_buffers(names: Iterable[str]) -> set[str]:
    """Buffers that the published code saves beside the arrays `names`, and no model needs."""
    norms = {name.removesuffix("running_mean") for name in names if name.endswith("running_mean")}
    graphs = {name.removesuffix("weight") for name in names if name.endswith("graph.weight")}
    return (
        {"zeros", "odesolve.integration_time"}
        | {f"{norm}num_batches_tracked" for norm in norms}
        | {f"{graph}mask" for graph in graphs}.difference(names)
    )


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"source = {path}: no such file")
    try:
        import torch  # noqa: PLC0415  an optional extra
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'dnw-jax[reference]'") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"source = {path}: not a PyTorch file of plain arrays. Save the state_dict alone: "
            "torch.save({'model': checkpoint['model']}, path)"
        ) from error
    arrays = next((loaded[key] for key in ("model", "state_dict") if key in loaded), loaded)
    return {name: array.numpy() for name, array in arrays.items()}


def _table(config: ConfigDict, variables: Iterable[VariablePath]) -> Table:
    """The published arrays of each variable of the model of `config`."""
    match config.model.name:
        case "tiny":
            return _tiny(config.model)
        case "mbv1":
            return _mbv1(config.model)
        case "mobilenet":
            return _mobilenet()
    return _resnet(config.model, variables)


def _tiny(model: ConfigDict) -> Table:
    prefix = "odesolve.odefunc." if model.wiring == "continuous" else ""
    table = {
        ("stem", "conv", "kernel"): Published(("downsample.0.weight",), _CONV),
        ("stem", "conv", "bias"): Published(("downsample.0.bias",), _VECTOR),
        **_batch_norm(("stem", "conv_norm"), "downsample.1"),
        ("stem", "depthwise_kernel"): Published(("downsample.3.weight",), _DEPTHWISE),
        ("stem", "depthwise_bias"): Published(("downsample.3.bias",), _VECTOR),
        ("stem", "mix", "kernel"): Published(("downsample.4.weight",), _CONV),
        ("stem", "mix", "bias"): Published(("downsample.4.bias",), _VECTOR),
        **_batch_norm(("stem", "mix_norm"), "downsample.5"),
        **_edges(("graph", "edges", "weight"), f"{prefix}graph", model.edges),
        ("graph", "nodes", "kernel"): Published((f"{prefix}conv.weight",), _DEPTHWISE),
        **_linear(("head",), "fc"),
    }
    norms, sizes = [f"{prefix}norm"], ()
    if model.wiring == "static":  # one norm for each block
        norms = [f"norm.{block}" for block in range(model.depth)]
        inner = (model.num_nodes - model.num_inputs) // (model.depth - 1)
        sizes = (model.num_inputs, *[inner] * (model.depth - 1))
    for variable, name in (("scale", "weight"), ("bias", "bias")):
        names = tuple(f"{norm}.{name}" for norm in norms)
        table["graph", "nodes", variable] = Published(names, _VECTOR, sizes)
    return table


def _mbv1(model: ConfigDict) -> Table:
    table = {
        ("stem", "kernel"): Published(("conv1.weight",), _CONV),
        **_batch_norm(("norm",), "bn"),
    }
    for index, stage in enumerate(stages(model.width)):
        graph, layer, sizes = f"graph_{index}", f"layers.{index}", stage.block_sizes[:-1]
        # The input nodes' kernels, and those of the inner blocks if the graph has any.
        kernels = (f"{layer}.downsample.0.weight", f"{layer}.conv.weight")[: len(sizes)]
        kernel_sizes = (sizes[0], sum(sizes[1:]))[: len(sizes)]
        table |= {
            (graph, "nodes", "kernel"): Published(kernels, _DEPTHWISE, kernel_sizes),
            **_batch_norm((graph, "nodes", "norm"), f"{layer}.norm", sizes),
            **_edges((graph, "edges", "weight"), f"{layer}.graph", model.edges),
        }
    if model.small:
        return table | _edges(("head", "kernel"), "linear.graph", model.edges)
    return table | _linear(("head",), "linear")


def _mobilenet() -> Table:
    table = {
        ("stem", "kernel"): Published(("conv1.weight",), _CONV),
        **_batch_norm(("norm",), "bn1"),
        **_linear(("head",), "linear"),
    }
    for index in range(13):
        layer, published = f"layer_{index}", f"layers.{index}"
        table |= {
            (layer, "depthwise_kernel"): Published((f"{published}.conv1.weight",), _DEPTHWISE),
            **_batch_norm((layer, "depthwise_norm"), f"{published}.bn1"),
            (layer, "mix", "kernel"): Published((f"{published}.conv2.weight",), _CONV),
            **_batch_norm((layer, "mix_norm"), f"{published}.bn2"),
        }
    return table


# The name of each variable of a norm in the published code.
_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def _resnet(model: ConfigDict, variables: Iterable[VariablePath]) -> Table:
    """The submodules have the published names; only the variables' names differ."""
    layout = _absolute(_CONV) if _is_targeted_dropout(model.edges) else _CONV
    kinds = {variable: (name, _VECTOR) for variable, name in _NORM.items()}
    kinds["kernel"] = ("weight", layout)
    return {
        (*module, variable): Published(
            (".".join((*module, kinds[variable][0])),), kinds[variable][1]
        )
        for *module, variable in variables
        if variable in kinds
    }


def _batch_norm(path: VariablePath, name: str, sizes: tuple[int, ...] = ()) -> Table:
    """The norm `name`; with `sizes` the norms `name.0`, `name.1`, ... of so many channels."""
    norms = [f"{name}.{index}" for index in range(len(sizes))] or [name]
    return {
        (*path, variable): Published(tuple(f"{norm}.{published}" for norm in norms), _VECTOR, sizes)
        for variable, published in _NORM.items()
    }


def _edges(path: VariablePath, name: str, rule: str) -> Table:
    """An edge matrix, and its mask if the rule keeps one."""
    layout = _absolute(_EDGES) if _is_targeted_dropout(rule) else _EDGES
    table = {path: Published((f"{name}.weight",), layout)}
    if rule in ("random", "fine_tune", "lottery_ticket"):
        table[(*path[:-1], "state")] = Published((f"{name}.mask",), _EDGES)
    return table


def _is_targeted_dropout(rule: str) -> bool:
    return rule.startswith("targeted_dropout")


def _linear(path: VariablePath, name: str) -> Table:
    return {
        (*path, "kernel"): Published((f"{name}.weight",), _LINEAR),
        (*path, "bias"): Published((f"{name}.bias",), _VECTOR),
    }
