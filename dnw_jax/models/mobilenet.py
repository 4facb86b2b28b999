"""MobileNetV1: as a chain of graphs (Tables 2 and 3), and as first published, dense."""

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
from dnw_jax.ops.depthwise import depthwise_conv3x3

# Images up to this size keep it in the stem; larger ones are halved.
_SMALL_IMAGES = 64


class Stage(NamedTuple):
    """One graph of the chain."""

    num_inputs: int
    num_outputs: int
    stride: int
    depth: int

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Number of nodes of each block: the inputs, `depth - 1` inner ones, the outputs."""
        return (self.num_inputs, *[self.num_outputs] * self.depth)

    def sparsity(self, sparsity: float) -> float:
        """The share of this graph's edges that are dropped.

        The budget is that of MobileNetV1 with 1 - `sparsity` of its channels, written in the order
        of the published code, so that it rounds as there.
        """
        width = 1 - sparsity
        num_edges = self.num_inputs * self.num_outputs * width * width
        for _ in range(self.depth - 1):
            num_edges += self.num_outputs * self.num_outputs * width * width
        sources, targets = edge_matrix_shape(self.block_sizes, None)
        return 1 - (num_edges / float(sources * targets))


def stages(width: float = 1.0) -> tuple[Stage, ...]:
    """MobileNetV1 with each run of equal layers as one graph; `width`: of all channel numbers."""
    sizes = [int(channels * width) for channels in (32, 64, 128, 256, 512, 1024)]
    strides, depths = (1, 2, 2, 2, 2), (1, 2, 2, 6, 2)
    return tuple(map(Stage, sizes, sizes[1:], strides, depths))


class MobileNetGraphs(nnx.Module):
    """Stem, a chain of blocked graphs, BatchNorm, ReLU, global average, linear layer.

    Args:
      num_channels: of the images.
      image_size: up to 64 pixels the stem keeps the size, above it halves it.
      sparsity: 1 - the width of the MobileNetV1 whose edges are the budget; the paper's "x0.225" is
        0.775.
      small: the last linear layer is a graph too: 1 - `sparsity` of its edges, no bias.
      stages: the graphs; of the paper: `stages()`.
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
        for index, stage in enumerate(stages):
            nodes = BatchNormNodes(sum(stage.block_sizes[:-1]), rngs=rngs)
            graph = BlockedGraph(
                stage.block_sizes,
                nodes,
                stage.sparsity(sparsity),
                rule,
                stride=stage.stride,
                rngs=rngs,
            )
            setattr(self, f"graph_{index}", graph)
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
        """Logits, float32. In training all norms use the batch's own statistics."""
        keys = split_key(key, self.num_graphs + 1)
        planes = self.stem(images.astype(self.dtype))
        for index in range(self.num_graphs):
            planes = getattr(self, f"graph_{index}")(planes, train=train, key=keys[index])
        features = _global_average(self.norm(planes, train=train, rectify=True))
        if isinstance(self.head, SparseLinear):
            return self.head(features, train=train, key=keys[-1])
        return self.head(features)


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
    return 1 if image_size <= _SMALL_IMAGES else 2


# Output channels and stride of each layer after the stem.
_LAYERS = (
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
      width: factor of every number of channels, rounded down.
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
        for index, (channels, stride) in enumerate(_LAYERS):
            num_out = int(channels * width)
            layer = Separable(num_in, num_out, stride, dtype=dtype, rngs=rngs)
            setattr(self, f"layer_{index}", layer)
            num_in = num_out
        self.head = linear(num_in, num_classes, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. In training all norms use the batch's own statistics."""
        del key
        planes = self.norm(self.stem(images.astype(self.dtype)), train=train, rectify=True)
        for index in range(len(_LAYERS)):
            planes = getattr(self, f"layer_{index}")(planes, train=train)
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
        """Planes of 1 / stride of the height and width, rounded up."""
        x = depthwise_conv3x3(planes, self.depthwise_kernel.astype(planes.dtype), self.stride)
        x = self.depthwise_norm(x, train=train, rectify=True)
        return self.mix_norm(self.mix(x), train=train, rectify=True)
