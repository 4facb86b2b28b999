"""The tiny classifiers of Table 1: stem, one graph, read-out; 41k live parameters."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.models.layers import dense_conv, linear
from dnw_jax.ops.depthwise import depthwise_conv3x3


@runtime_checkable
class Graph(Protocol):
    """A wiring: blocked, or in time."""

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        pixels: tuple[slice, slice] = ...,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """States of the output nodes, at the rows and columns of `pixels`."""


class TinyClassifier(nnx.Module):
    """Images -> stem -> graph -> average of four central pixels -> linear layer."""

    def __init__(
        self,
        stem: "Stem",
        graph: Graph,
        num_outputs: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.stem = stem
        self.graph = graph
        self.head = linear(num_outputs, num_classes, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width channels"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits, float32. In training the stem's norms use the batch's own statistics."""
        inputs = self.stem(images.astype(self.dtype), train=train)
        states = self.graph(inputs, train=train, key=key, pixels=central_pixels(inputs))
        return self.head(jnp.mean(states.astype(jnp.float32), (1, 2)))


class Stem(nnx.Module):
    """Quarters the images' sides and makes the graph's input planes.

    Convolution 3x3/2, BatchNorm, ReLU, single-channel convolution 3x3/2, 1x1, BatchNorm.
    """

    def __init__(
        self,
        num_channels: int,
        num_inputs: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = num_inputs // 2
        self.conv = dense_conv(num_channels, width, 3, stride=2, dtype=dtype, rngs=rngs)
        self.conv_norm = BatchNorm(width)
        self.depthwise_kernel = nnx.Param(uniform_fan_in(9)(rngs.params(), (3, 3, width)))
        self.depthwise_bias = nnx.Param(uniform_fan_in(9)(rngs.params(), (width,)))
        self.mix = dense_conv(width, num_inputs, 1, stride=1, dtype=dtype, rngs=rngs)
        self.mix_norm = BatchNorm(num_inputs)

    def __call__(
        self,
        images: Float[Array, "batch image_height image_width channels"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width inputs"]:
        """Planes of a quarter of the images' height and width (rounded up)."""
        x = self.conv_norm(self.conv(images), train=train, rectify=True)
        x = depthwise_conv3x3(x, self.depthwise_kernel.astype(x.dtype), 2)
        x = self.mix(x + self.depthwise_bias.astype(x.dtype))
        return self.mix_norm(x, train=train)


def central_pixels(planes: Float[Array, "batch height width nodes"]) -> tuple[slice, slice]:
    """The two rows and two columns before the centre (of 8x8 planes: 2 and 3, from 0)."""
    row, column = (max(size // 2 - 2, 0) for size in planes.shape[1:3])
    return slice(row, row + 2), slice(column, column + 2)
