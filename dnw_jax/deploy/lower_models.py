"""Lowers each model to a `Network`. Nothing else in `deploy/` asks for the class of a model."""

import functools

from flax import nnx

from dnw_jax.deploy.builder import Builder, numbers
from dnw_jax.deploy.lower_graphs import lower_blocked, lower_in_time, lower_sparse_linear
from dnw_jax.deploy.network import INPUT, Network
from dnw_jax.deploy.operations import Add, MaxPool, MeanPool
from dnw_jax.deploy.products import Depthwise, Linear
from dnw_jax.errors import UserError
from dnw_jax.graphs.blocked import BlockedGraph
from dnw_jax.graphs.sparse_layer import SparseLinear
from dnw_jax.graphs.time_graph import TimeGraph
from dnw_jax.models.mobilenet import MobileNetGraphs, MobileNetV1
from dnw_jax.models.numbered import numbered
from dnw_jax.models.resnet import Block, ResNet
from dnw_jax.models.tiny import Stem, TinyClassifier, central_pixels


@functools.singledispatch
def lowered(model: nnx.Module, image_size: int) -> Network:
    """Returns the lowered network of a model; see `network.lower`."""
    raise UserError(
        f"model is a {type(model).__name__}; only the models of dnw_jax are lowered and counted. "
        "The edges that another model keeps: dnw_jax.wiring(model), or its sparsifier's report"
    )


@lowered.register
def _(model: TinyClassifier, image_size: int) -> Network:
    builder = Builder(image_size, model.stem.conv.in_features)
    inputs = _lower_stem(builder, model.stem)
    if isinstance(model.graph, BlockedGraph):
        states = lower_blocked(builder, "graph", model.graph, inputs)
    else:
        assert isinstance(model.graph, TimeGraph)
        states = lower_in_time(builder, "graph", model.graph, inputs)
    size = builder.sizes[states]
    rows, columns = central_pixels(size.height, size.width)
    features = builder.add(
        MeanPool,
        "head",
        "average",
        states,
        rows=range(size.height)[rows],
        columns=range(size.width)[columns],
    )
    _lower_linear(builder, features, model.head)
    return builder.network(model)


def _lower_stem(builder: Builder, stem: Stem) -> str:
    value = builder.convolution("stem", "conv", INPUT, stem.conv)
    value = builder.batch_norm("stem", "conv_norm", value, stem.conv_norm, rectify=True)
    value = builder.add(
        Depthwise,
        "stem",
        "depthwise",
        value,
        kernel=numbers(stem.depthwise_kernel),
        bias=numbers(stem.depthwise_bias),
        stride=2,
    )
    value = builder.convolution("stem", "mix", value, stem.mix)
    return builder.batch_norm("stem", "mix_norm", value, stem.mix_norm)


def _lower_linear(builder: Builder, features: str, layer: nnx.Linear) -> str:
    assert layer.bias is not None
    weights, bias = numbers(layer.kernel), numbers(layer.bias)
    return builder.add(Linear, "head", "logits", features, weights=weights, bias=bias)


@lowered.register
def _(model: MobileNetGraphs, image_size: int) -> Network:
    builder = Builder(image_size, model.stem.in_features)
    value = builder.convolution("stem", "conv", INPUT, model.stem)
    for index, graph in enumerate(numbered(model, "graph_")):
        value = lower_blocked(builder, f"graph_{index}", graph, value)
    value = builder.batch_norm("norm", "norm", value, model.norm, rectify=True)
    features = builder.global_average("head", "average", value)
    if isinstance(model.head, SparseLinear):
        lower_sparse_linear(builder, "head", model.head, features)
    else:
        _lower_linear(builder, features, model.head)
    return builder.network(model)


@lowered.register
def _(model: MobileNetV1, image_size: int) -> Network:
    builder = Builder(image_size, model.stem.in_features)
    value = builder.convolution("stem", "conv", INPUT, model.stem)
    value = builder.batch_norm("stem", "norm", value, model.norm, rectify=True)
    for index, layer in enumerate(numbered(model, "layer_")):
        part = f"layer_{index}"
        kernel = numbers(layer.depthwise_kernel)
        value = builder.add(Depthwise, part, "depthwise", value, kernel=kernel, stride=layer.stride)
        value = builder.batch_norm(
            part, "depthwise_norm", value, layer.depthwise_norm, rectify=True
        )
        value = builder.convolution(part, "mix", value, layer.mix)
        value = builder.batch_norm(part, "mix_norm", value, layer.mix_norm, rectify=True)
    features = builder.global_average("head", "average", value)
    _lower_linear(builder, features, model.head)
    return builder.network(model)


@lowered.register
def _(model: ResNet, image_size: int) -> Network:
    builder = Builder(image_size, model.conv1.in_features)
    value = builder.convolution("conv1", "conv", INPUT, model.conv1)
    value = builder.batch_norm("conv1", "norm", value, model.bn1, rectify=True)
    if not model.small_images:
        value = builder.add(MaxPool, "conv1", "pool", value, window=3, stride=2, padding=1)
    for number, layer in enumerate(numbered(model, "layer", 1), start=1):
        for index, block in enumerate(numbered(layer, "")):
            value = _lower_block(builder, f"layer{number}.{index}", block, value)
    features = builder.global_average("fc", "average", value)
    builder.convolution("fc", "logits", features, model.fc)
    return builder.network(model)


def _lower_block(builder: Builder, name: str, block: Block, value: str) -> str:
    shortcut, inner = value, value
    layers = list(zip(numbered(block, "conv", 1), numbered(block, "bn", 1), strict=True))
    for number, (convolution, norm) in enumerate(layers, start=1):
        part, rectify = f"{name}.conv{number}", number < len(layers)
        inner = builder.convolution(part, "conv", inner, convolution)
        inner = builder.batch_norm(part, "norm", inner, norm, rectify=rectify)
    if block.downsample is not None:
        part = f"{name}.downsample"
        convolution, norm = numbered(block.downsample, "")
        shortcut = builder.convolution(part, "conv", value, convolution)
        shortcut = builder.batch_norm(part, "norm", shortcut, norm)
    total = builder.add(Add, name, "sum", inner, shortcut)
    return builder.relu(name, "relu", total)
