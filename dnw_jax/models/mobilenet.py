"""MobileNetV1 as a chain of graphs, and the dense MobileNetV1: Tables 2 and 3 of the paper."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from dnw_jax.edges import Rule, split_key
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.blocked import BlockedGraph, edge_matrix_shape
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.graphs.nodes import BatchNormNodes
from dnw_jax.graphs.sparse_layer import SparseLinear
from dnw_jax.models.layers import dense_conv, linear
from dnw_jax.models.numbered import add_numbered, numbered
from dnw_jax.ops.depthwise import depthwise_conv3x3

# The stem keeps the size of images up to this many pixels, and halves larger ones.
_LARGEST_SMALL_IMAGE = 64


class Stage(NamedTuple):
    """The shape of one graph of the chain.

    Attributes:
      num_inputs: nodes of the first block, the channels that enter the graph.
      num_outputs: nodes of each other block, the channels that leave it.
      stride: of the input nodes' convolution: 1, or 2 to halve the planes.
      depth: layers of MobileNetV1 that this graph replaces, at least 1.
    """

    num_inputs: int
    num_outputs: int
    stride: int
    depth: int

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The number of nodes of each block: the inputs, `depth - 1` inner ones, the outputs."""
        return (self.num_inputs, *[self.num_outputs] * self.depth)

    def sparsity(self, sparsity: float) -> float:
        """Returns the share of this graph's possible edges that are not real.

        The number of real edges is the number of 1x1 weights of MobileNetV1 with 1 - `sparsity`
        of its channels. The operations are in the order of the published code, so that floats
        round as they do there.
        """
        width = 1 - sparsity
        num_edges = self.num_inputs * self.num_outputs * width * width
        for _ in range(self.depth - 1):
            num_edges += self.num_outputs * self.num_outputs * width * width
        sources, targets = edge_matrix_shape(self.block_sizes, None)
        return 1 - (num_edges / float(sources * targets))


def stages(width: float = 1.0) -> tuple[Stage, ...]:
    """Returns the graphs that replace MobileNetV1: one for each run of equal layers.

    Args:
      width: factor of every number of channels, rounded down.
    """
    sizes = [int(channels * width) for channels in (32, 64, 128, 256, 512, 1024)]
    strides, depths = (1, 2, 2, 2, 2), (1, 2, 2, 6, 2)
    return tuple(map(Stage, sizes, sizes[1:], strides, depths))


class MobileNetGraphs(nnx.Module):
    """Stem, a chain of blocked graphs, BatchNorm, ReLU, global average, linear layer.

    Args:
      num_channels: of the images.
      num_classes: number of logits.
      image_size: height and width of the images. The stem halves those above 64 pixels.
      sparsity: in [0, 1): 1 - the width of the MobileNetV1 with as many edges. The paper's "x0.225"
        is 0.775.
      rule: chooses the edges of every graph.
      small: makes the last linear layer a graph, too, with 1 - `sparsity` of its edges and no bias
        ("DNW-Small" in Table 2).
      stages: the graphs in order; the paper's are `stages()`.
      dtype: of the computation; the parameters are float32.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        image_size: int,
        sparsity: float,
        rule: Rule,
        *,
        small: bool = False,
        stages: Sequence[Stage],
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.num_graphs = len(stages)
        self.stem_stride = _stem_stride(image_size)
        self.stem = _stem(num_channels, stages[0].num_inputs, self.stem_stride, dtype, rngs)
        add_numbered(self, "graph_", [_graph(stage, sparsity, rule, rngs) for stage in stages])
        num_features = stages[-1].num_outputs
        self.norm = BatchNorm(num_features)
        self.head: SparseLinear | nnx.Linear
        if small:
            self.head = SparseLinear(
                num_features,
                num_classes,
                sparsity=sparsity,
                rule=rule,
                use_bias=False,
                kernel_init=uniform_fan_in(num_features),
                rngs=rngs,
            )
        else:
            self.head = linear(num_features, num_classes, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Returns the logits, float32.

        Args:
          images: normalised.
          train: normalises by the statistics of this batch and updates the running ones.
          key: for rules that draw random numbers in training.
        """
        keys = split_key(key, self.num_graphs + 1)
        planes = self.stem(images.astype(self.dtype))
        for graph, graph_key in zip(numbered(self, "graph_"), keys[:-1], strict=True):
            planes = graph(planes, train=train, key=graph_key)
        features = _global_average(self.norm(planes, train=train, rectify=True))
        if isinstance(self.head, SparseLinear):
            return self.head(features, train=train, key=keys[-1])
        return self.head(features)


def _graph(stage: Stage, sparsity: float, rule: Rule, rngs: nnx.Rngs) -> BlockedGraph:
    nodes = BatchNormNodes(sum(stage.block_sizes[:-1]), rngs=rngs)
    return BlockedGraph(
        stage.block_sizes, nodes, stage.sparsity(sparsity), rule, stride=stage.stride, rngs=rngs
    )


def _global_average(
    planes: Float[Array, "batch height width nodes"],
) -> Float[Array, "batch nodes"]:
    return jnp.mean(planes.astype(jnp.float32), (1, 2))


def _stem(
    num_channels: int, num_out: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.Conv:
    return dense_conv(
        num_channels, num_out, 3, stride=stride, use_bias=False, dtype=dtype, rngs=rngs
    )


def _stem_stride(image_size: int) -> int:
    return 1 if image_size <= _LARGEST_SMALL_IMAGE else 2


# Output channels and stride of each layer after the stem.
_DENSE_LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nnx.Module):
    """MobileNetV1 as published by Howard et al. 2017: the dense baseline of Tables 2 and 3.

    Args:
      num_channels: of the images.
      num_classes: number of logits.
      image_size: height and width of the images. The stem halves those above 64 pixels.
      width: factor of every number of channels, rounded down.
      dtype: of the computation; the parameters are float32.
    """

    def __init__(
        self,
        num_channels: int,
        num_classes: int,
        image_size: int,
        width: float,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        num_in = int(32 * width)
        self.stem_stride = _stem_stride(image_size)
        self.stem = _stem(num_channels, num_in, self.stem_stride, dtype, rngs)
        self.norm = BatchNorm(num_in)
        layers = []
        for channels, stride in _DENSE_LAYERS:
            num_out = int(channels * width)
            layers.append(Separable(num_in, num_out, stride, dtype=dtype, rngs=rngs))
            num_in = num_out
        add_numbered(self, "layer_", layers)
        self.head = linear(num_in, num_classes, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Returns the logits, float32.

        Args:
          images: normalised.
          train: normalises by the statistics of this batch and updates the running ones.
          key: not used; every model takes one.
        """
        del key
        planes = self.norm(self.stem(images.astype(self.dtype)), train=train, rectify=True)
        for layer in numbered(self, "layer_"):
            planes = layer(planes, train=train)
        return self.head(_global_average(planes))


class Separable(nnx.Module):
    """Single-channel convolution 3x3, BatchNorm, ReLU, convolution 1x1, BatchNorm, ReLU."""

    def __init__(self, num_in: int, num_out: int, stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.stride = stride
        self.depthwise_kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, num_in)))
        self.depthwise_norm = BatchNorm(num_in)
        self.mix = dense_conv(num_in, num_out, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.mix_norm = BatchNorm(num_out)

    def __call__(
        self, planes: Float[Array, "batch height width inputs"], *, train: bool
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns planes of 1 / stride of the height and width, rounded up."""
        x = depthwise_conv3x3(planes, self.depthwise_kernel.astype(planes.dtype), self.stride)
        x = self.depthwise_norm(x, train=train, rectify=True)
        return self.mix_norm(self.mix(x), train=train, rectify=True)
