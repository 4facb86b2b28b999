"""The operations of a lowered network: small frozen dataclasses that compute in NumPy.

This file holds what all operations share, norms, and the operations without numbers; `products.py`
holds the operations with weights. Neither imports JAX or Flax, so that a lowered network can be
loaded and called where they are not installed.

Values are planes, float32 [batch, height, width, channels]. Features and logits are planes of one
pixel. Every array that an operation holds is float32 (masks: bool).
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dnw_jax.errors import UserError

Array = np.ndarray
Planes = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch out_height out_width channels"]
OtherChannels = Float[Array, "batch height width out_channels"]
PerChannel = Float[Array, " channels"]

NOT_CALLABLE = (
    "this network holds a graph in continuous time; only one evaluation of its field was lowered, "
    "to count its cost, and the logits need the adaptive solver: call the model itself, or lower "
    "a model with model.wiring static or discrete"
)


class Size(NamedTuple):
    """The size of a value for one image."""

    height: int
    width: int
    channels: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width


@dataclass(frozen=True, eq=False, kw_only=True)
class Operation(abc.ABC):
    """One step of a network: computes a named value from other named values.

    Attributes:
      inputs: names of the values that it reads.
      output: name of the value that it computes. No other operation computes this value.
      part: the part of the model that it belongs to, named as in the model ("stem", "graph_0",
        "layer1.0.conv1", "head").
      nodes: in a graph, the numbers of the nodes whose planes are the channels of the output. None
        outside of graphs. The steps of a graph in time share the parameters of equal nodes.
    """

    inputs: tuple[str, ...]
    output: str
    part: str
    nodes: range | None = None

    @abc.abstractmethod
    def __call__(self, *values: Planes) -> Array:
        """Returns the output, given the values of `inputs`."""

    @abc.abstractmethod
    def size(self, *sizes: Size) -> Size:
        """Returns the size of the output, given the sizes of `inputs`."""


class ByChannel(Operation):
    """An operation whose output has the size of its inputs and keeps the channels apart."""

    def size(self, *sizes: Size) -> Size:
        """Returns the size of the first input."""
        return sizes[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(ByChannel):
    """Normalises each channel, then multiplies by `scale` and adds `bias`.

    Attributes:
      scale, bias: applied after the normalisation.
      mean, variance: the running statistics of a batch norm. Both None: an instance norm, by the
        mean and the variance of the pixels of each plane of each image.
      epsilon: added to the variance.
    """

    scale: PerChannel
    bias: PerChannel
    mean: PerChannel | None = None
    variance: PerChannel | None = None
    epsilon: float = 1e-5

    def __call__(self, *values: Planes) -> Planes:
        """Returns the normalised planes."""
        (planes,) = values
        mean, variance = self.mean, self.variance
        if mean is None or variance is None:
            mean = planes.mean((1, 2), keepdims=True)
            variance = planes.var((1, 2), keepdims=True)
        return (planes - mean) * (self.scale / np.sqrt(variance + self.epsilon)) + self.bias


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(ByChannel):
    """Sets negative numbers to zero."""

    def __call__(self, *values: Planes) -> Planes:
        """Returns the rectified planes."""
        return np.maximum(values[0], 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(ByChannel):
    """The sum of two or more values of one size."""

    def __call__(self, *values: Planes) -> Planes:
        """Returns the sum."""
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Operation):
    """The maximum over square windows.

    Attributes:
      window: height and width of a window.
      stride: distance in pixels between windows, in both directions.
      padding: rows and columns on each side that no maximum comes from.
    """

    window: int
    stride: int
    padding: int

    def __call__(self, *values: Planes) -> Resized:
        """Returns the maximum of each window."""
        padded, window = padded_planes(values[0], self.padding, -np.inf), (self.window, self.window)
        views = np.lib.stride_tricks.sliding_window_view(padded, window, (1, 2))
        return views[:, :: self.stride, :: self.stride].max((-2, -1))

    def size(self, *sizes: Size) -> Size:
        """Returns the number of windows in both directions."""
        numbers = num_windows(sizes[0], self.window, self.stride, self.padding)
        return Size(*numbers, sizes[0].channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class MeanPool(Operation):
    """The mean over a rectangle of pixels.

    Attributes:
      rows, columns: the rectangle.
    """

    rows: range
    columns: range

    def __call__(self, *values: Planes) -> Float[Array, "batch 1 1 channels"]:
        """Returns planes of one pixel."""
        rows, columns = (slice(pixels.start, pixels.stop) for pixels in (self.rows, self.columns))
        return values[0][:, rows, columns].mean((1, 2), keepdims=True)

    def size(self, *sizes: Size) -> Size:
        """Returns the size of one pixel."""
        return Size(1, 1, sizes[0].channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice(Operation):
    """Some neighbouring channels of a value.

    Attributes:
      channels: the channels of the input that are kept.
    """

    channels: range

    def __call__(self, *values: Planes) -> OtherChannels:
        """Returns these channels."""
        return values[0][..., self.channels.start : self.channels.stop]

    def size(self, *sizes: Size) -> Size:
        """Returns the input's height and width with fewer channels."""
        return sizes[0]._replace(channels=len(self.channels))


@dataclass(frozen=True, eq=False, kw_only=True)
class AppendZeros(Operation):
    """A value followed by channels of zeros.

    Attributes:
      num_channels: number of channels of the output.
    """

    num_channels: int

    def __call__(self, *values: Planes) -> OtherChannels:
        """Returns the value with channels of zeros after its own channels."""
        more = self.num_channels - values[0].shape[-1]
        return np.pad(values[0], ((0, 0), (0, 0), (0, 0), (0, more)))

    def size(self, *sizes: Size) -> Size:
        """Returns the input's height and width with more channels."""
        return sizes[0]._replace(channels=self.num_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Solve(ByChannel):
    """The state at t = 1 of a differential equation, which NumPy does not compute.

    `inputs` are the state at t = 0 and its time derivative there. The operations from the former
    to the latter are one evaluation of the field; a solver evaluates it many times.
    """

    def __call__(self, *values: Planes) -> Planes:
        """Raises UserError."""
        raise UserError(NOT_CALLABLE)


def padded_planes(
    planes: Planes, padding: int, value: float = 0.0
) -> Float[Array, "batch padded_height padded_width channels"]:
    """Adds `padding` rows and columns of `value` on all four sides."""
    ends = (padding, padding)
    return np.pad(planes, ((0, 0), ends, ends, (0, 0)), constant_values=value)


def num_windows(size: Size, window: int, stride: int, padding: int) -> tuple[int, int]:
    """Returns how many windows fit in the rows and in the columns."""
    height, width = (
        (pixels + 2 * padding - window) // stride + 1 for pixels in (size.height, size.width)
    )
    return height, width
