"""The tiny classifiers of Table 1: stem, one graph, linear head; 41k live parameters."""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.models.layers import dense_conv, linear
from dnw_jax.ops.depthwise import depthwise_conv3x3


@runtime_checkable
class Graph(Protocol):
    """A graph of nodes: `BlockedGraph` or `TimeGraph`."""

    def __call__(
        self,
        inputs: Float[Array, "batch height width inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        mask: Bool[Array, " batch"] | None = None,
        pixels: tuple[slice, slice] = ...,
    ) -> Float[Array, "batch out_height out_width outputs"]:
        """Returns the states of the output nodes, at the rows and columns of `pixels`.

        `mask` marks the real examples; padding must not influence their states.
        """


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
        mask: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Returns logits, float32.

        Args:
          images: normalised images.
          train: whether the stem's norms use the statistics of the batch.
          key: for rules that draw random numbers.
          mask: marks the real examples. In evaluation the logits of these do not depend on the
            others. None: all are real.
        """
        inputs = self.stem(images.astype(self.dtype), train=train)
        pixels = central_pixels(*inputs.shape[1:3])
        states = self.graph(inputs, train=train, key=key, mask=mask, pixels=pixels)
        return self.head(jnp.mean(states.astype(jnp.float32), (1, 2)))


class Stem(nnx.Module):
    """Makes the graph's input planes, of a quarter of the images' height and width.

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
        """Returns planes of a quarter of the images' height and width (rounded up)."""
        x = self.conv_norm(self.conv(images), train=train, rectify=True)
        x = depthwise_conv3x3(x, self.depthwise_kernel.astype(x.dtype), 2)
        x = self.mix(x + self.depthwise_bias.astype(x.dtype))
        return self.mix_norm(x, train=train)


def central_pixels(height: int, width: int) -> tuple[slice, slice]:
    """Returns the two rows and two columns before the centre: 2 and 3 (from 0) of 8x8 planes."""
    row, column = (max(size // 2 - 2, 0) for size in (height, width))
    return slice(row, row + 2), slice(column, column + 2)
