"""Dense convolution, with a gradient that XLA:CPU runs fast inside a loop, too.

Inside a loop XLA:CPU takes a hundred times longer for a convolution whose axes are not in the order
[batch, height, width, channels] (https://github.com/jax-ml/jax/issues/12868), and autodiff writes
gradients in another order. A window of 1x1 is a matrix product, which is fast everywhere. A
convolution whose result has a few pixels becomes one, too.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.ops.barriers import barrier
from dnw_jax.ops.send import send


def conv2d(
    planes: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "window window inputs outputs"],
    stride: int = 1,
    padding: int = 0,
) -> Float[Array, "batch out_height out_width outputs"]:
    """Cross-correlates planes with a kernel.

    The gradient is hand-written for convolutions inside a loop on CPU: see the top of this file.
    Autodiff takes 43 times as long (jax 0.10.2, `python -m experiments.benchmarks.gradients`).

    Args:
      planes: the input.
      kernel: of the same floating-point type as `planes`.
      stride: in pixels.
      padding: how many rows and columns of zeros are padded on each of the four sides.
    """
    if kernel.shape[:2] == (1, 1) and padding == 0:
        # XLA for GPU (jax 0.10.2) crashes when it fuses a strided slice into a product.
        return send(barrier(planes[:, ::stride, ::stride]), kernel[0, 0])
    sizes = [
        (size + 2 * padding - window) // stride + 1
        for size, window in zip(planes.shape[1:3], kernel.shape[:2], strict=True)
    ]
    if math.prod(sizes) <= _FEW_PIXELS:
        patches = _patches(planes, kernel.shape[:2], stride, padding)
        return send(patches, kernel.reshape(-1, kernel.shape[-1]))
    return _convolve(planes, kernel, stride, padding)


# For a result of so few pixels XLA:CPU's convolution is a hundred times slower than a product.
_FEW_PIXELS = 9


def _patches(planes: Array, window: tuple[int, ...], stride: int, padding: int) -> Array:
    """Returns for each pixel of the result the window that it sees, as channels."""
    ends = (padding, padding)
    padded = jnp.pad(planes, ((0, 0), ends, ends, (0, 0)))
    rows, columns = (size - w + 1 for size, w in zip(padded.shape[1:3], window, strict=True))
    shifted = [
        padded[:, row : row + rows : stride, column : column + columns : stride]
        for row, column in itertools.product(*map(range, window))
    ]
    return jnp.concatenate(shifted, -1)


def conv_general_dilated(
    planes: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **others: Any,
) -> Array:
    """Returns `conv2d` of its arguments: for `conv_general_dilated=` of `flax.nnx.Conv`.

    Raises:
      ValueError: strides or paddings differ, or a dilation or groups are asked for.
    """
    dilations = {*others.get("lhs_dilation", ()), *others.get("rhs_dilation", ())}
    (height, width), ends = strides, {end for pair in padding for end in pair}
    if height != width or len(ends) > 1 or dilations - {1} or others["feature_group_count"] != 1:
        raise ValueError(
            f"strides={strides}, padding={padding}, {others}: only equal strides and paddings, "
            "no dilation and one group are implemented"
        )
    return conv2d(planes, kernel, height, ends.pop())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(planes: Array, kernel: Array, stride: int, padding: int) -> Array:
    return _correlate(planes, kernel, stride, padding)


def _correlate(planes: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        planes, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_ORDER
    )


_ORDER = ("NHWC", "HWIO", "NHWC")


def _forward(
    planes: Array, kernel: Array, stride: int, padding: int
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(planes, kernel, stride, padding), (planes, kernel)


def _backward(
    stride: int, padding: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *residuals,
        cotangent,
        cpu=functools.partial(_gradients, stride=stride, padding=padding, keep=barrier),
        default=functools.partial(_gradients, stride=stride, padding=padding, keep=lambda a: a),
    )


def _gradients(
    planes: Array,
    kernel: Array,
    cotangent: Array,
    *,
    stride: int,
    padding: int,
    keep: Callable[[Any], Any],
) -> tuple[Array, Array]:
    """Returns both gradients, each a convolution.

    `keep` may be a barrier that stops XLA from folding the transposes into the convolutions.
    """
    sizes = list(zip(planes.shape[1:3], cotangent.shape[1:3], kernel.shape[:2], strict=True))
    flipped = keep(kernel[::-1, ::-1].swapaxes(2, 3))
    ends = [
        (window - 1 - padding, size + padding - 1 - (out - 1) * stride)
        for size, out, window in sizes
    ]
    planes_cotangent = lax.conv_general_dilated(
        cotangent, flipped, (1, 1), ends, lhs_dilation=(stride, stride), dimension_numbers=_ORDER
    )
    # Images and channels change places, because a convolution sums over channels.
    by_input, by_pixel = keep((planes.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)))
    ends = [(padding, window + (out - 1) * stride - size - padding) for size, out, window in sizes]
    kernel_cotangent = lax.conv_general_dilated(
        by_input, by_pixel, (1, 1), ends, rhs_dilation=(stride, stride), dimension_numbers=_ORDER
    )
    return planes_cotangent, keep(kernel_cotangent).transpose(1, 2, 0, 3)


_convolve.defvjp(_forward, _backward)
