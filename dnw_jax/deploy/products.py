"""The operations of a lowered network that have weights: edges, convolutions and linear maps."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dnw_jax.deploy.operations import (
    Array,
    Operation,
    PerChannel,
    Planes,
    Resized,
    Size,
    num_windows,
    padded_planes,
)

Sent = Float[Array, "batch out_height out_width targets"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Operation):
    """A linear map of channels, applied to every pixel.

    Attributes:
      weights: [..., sources, targets], with zeros where `mask` is False.
      mask: marks the real edges; None if the map is dense.
      bias: added to each target, or None.
    """

    weights: Float[Array, "*window sources targets"]
    mask: Bool[Array, "*window sources targets"] | None = None
    bias: Float[Array, " targets"] | None = None

    def __call__(self, *values: Planes) -> Sent:
        """Returns the planes times the weights, plus the bias."""
        return self._biased(_times(values[0], self.weights))

    def size(self, *sizes: Size) -> Size:
        """Returns the size of the input with as many channels as targets."""
        return sizes[0]._replace(channels=self.weights.shape[-1])

    @property
    def real_edges(self) -> Bool[Array, "*window sources targets"]:
        """The mask; all True if the map is dense."""
        return np.ones(self.weights.shape, bool) if self.mask is None else self.mask

    def _biased(self, planes: Planes) -> Planes:
        return planes if self.bias is None else planes + self.bias


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Product):
    """A dense linear map: weights [sources, targets], no mask.

    It adds nothing to `Product`. It is a class so that a consumer can match it before it matches
    any `Product`, and export it as a dense layer: the models use it for planes of one pixel only.
    """


@dataclass(frozen=True, eq=False, kw_only=True)
class Edges(Product):
    """The signal that nodes send along edges: weights [sources, targets], a mask, no bias.

    Attributes:
      sources: the numbers of the nodes that send. `nodes` are those that receive.
    """

    sources: range


@dataclass(frozen=True, eq=False, kw_only=True)
class Convolution(Product):
    """A convolution with weights [height, width, sources, targets] and zero padding.

    Attributes:
      stride: distance in pixels between windows, in both directions.
      padding: rows and columns of zeros on each of the four sides.
    """

    stride: int
    padding: int

    def __call__(self, *values: Planes) -> Sent:
        """Returns the cross-correlation of the planes with the weights, plus the bias."""
        (planes,) = values
        step, window = self.stride, self.weights.shape[:2]
        if window == (1, 1) and self.padding == 0:
            return self._biased(_times(planes[:, ::step, ::step], self.weights[0, 0]))
        padded = padded_planes(planes, self.padding)
        views = np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2))
        # [batch, rows, columns, height, width, sources], as the weights are laid out.
        patches = views[:, ::step, ::step].transpose(0, 1, 2, 4, 5, 3)
        weights = self.weights.reshape(-1, self.weights.shape[-1])
        return self._biased(_times(patches.reshape(*patches.shape[:3], len(weights)), weights))

    def size(self, *sizes: Size) -> Size:
        """Returns the number of windows in both directions, and the number of targets."""
        height, width = num_windows(sizes[0], self.weights.shape[0], self.stride, self.padding)
        return Size(height, width, self.weights.shape[-1])


@dataclass(frozen=True, eq=False, kw_only=True)
class Depthwise(Operation):
    """A 3x3 convolution of each plane with a kernel for this plane, zero padding of 1.

    Attributes:
      kernel: the kernels.
      stride: distance in pixels between windows, in both directions.
      bias: added to each plane, or None.
    """

    kernel: Float[Array, "3 3 channels"]
    stride: int = 1
    bias: PerChannel | None = None

    def __call__(self, *values: Planes) -> Resized:
        """Returns the sum of nine shifted products, plus the bias."""
        (planes,) = values
        padded, (_, height, width, _) = padded_planes(planes, 1), planes.shape
        total = np.zeros((), np.float32) if self.bias is None else self.bias
        for row, column in itertools.product(range(3), range(3)):
            rows = slice(row, row + height, self.stride)
            columns = slice(column, column + width, self.stride)
            total = total + padded[:, rows, columns] * self.kernel[row, column]
        return total

    def size(self, *sizes: Size) -> Size:
        """Returns the input's height and width divided by the stride, rounded up."""
        return Size(*num_windows(sizes[0], 3, self.stride, 1), sizes[0].channels)


def _times(planes: Planes, weights: Float[Array, "channels targets"]) -> Sent:
    """Returns planes @ weights as one product of two matrices, which NumPy computes fastest."""
    *pixels, channels = planes.shape
    # The number of pixels is not -1, which NumPy cannot infer for an empty batch.
    matrix = planes.reshape(math.prod(pixels), channels)
    return (matrix @ weights).reshape(*pixels, weights.shape[1])
