"""Single-channel 3x3 convolution: each plane has its own kernel.

A TPU runs XLA's grouped convolution (`grouped`). There a sum of nine shifted products would write
each product to memory and read it again.

XLA's grouped convolution is 10 to 60 times slower on CPU (`experiments.benchmarks.depthwise`), so
elsewhere the convolution is a sum of nine shifted products. Padding the *product*, rather than
slicing a padded input, lets XLA:CPU vectorise the whole sum: 3.3 ms instead of 16 ms for 128 images
of 8x8 and 800 nodes on two cores. The operands and the result are written to memory
(`materialised`): a producer fused into the convolution would be computed nine times, and a consumer
fused into it would set a slow order of axes.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.ops.barriers import materialised

_TAPS = [(row, column) for row in range(3) for column in range(3)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv3x3(
    planes: Float[Array, "batch height width nodes"],
    kernel: Float[Array, "3 3 nodes"],
    stride: int = 1,
) -> Float[Array, "batch out_height out_width nodes"]:
    """Cross-correlates each plane with its node's kernel.

    The gradient is hand-written because autodiff turns the fast form of this sum into slices of a
    padded array, which XLA:CPU does not vectorise. Autodiff takes 2.7 times as long
    (jax 0.10.2, `python -m experiments.benchmarks.gradients`).

    Args:
      planes: zeros are padded on each side, one row or column.
      kernel: a 3x3 kernel for each node.
      stride: in pixels.

    Returns:
      `ceil(height / stride)` rows and `ceil(width / stride)` columns of each plane.
    """

    def convolve(planes: Array, kernel: Array) -> Array:
        return _correlate(planes, kernel)[:, ::stride, ::stride]

    def shifted(planes: Array, kernel: Array) -> Array:
        return materialised(convolve, planes, kernel)

    if planes.size == 0:
        return shifted(planes, kernel)
    on_tpu = functools.partial(grouped, stride=stride)
    return lax.platform_dependent(planes, kernel, tpu=on_tpu, default=shifted)


def grouped(planes: Array, kernel: Array, stride: int) -> Array:
    """Returns `depthwise_conv3x3` as XLA's convolution with a group for each plane."""
    dtype = jnp.promote_types(planes.dtype, kernel.dtype)
    return lax.conv_general_dilated(
        planes.astype(dtype),
        kernel[:, :, None].astype(dtype),
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=planes.shape[-1],
    )


def _correlate(planes: Array, kernel: Array) -> Array:
    return _sum(_shift(planes * kernel[r, c], 1 - r, 1 - c) for r, c in _TAPS)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _shift(planes: Array, rows: int, columns: int) -> Array:
    """Moves the planes down by `rows` and right by `columns`, filling with zeros."""
    zero = jnp.zeros((), planes.dtype)
    return lax.pad(planes, zero, ((0, 0, 0), (rows, -rows, 0), (columns, -columns, 0), (0, 0, 0)))


def _forward(planes: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_conv3x3(planes, kernel, stride), (planes, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    planes, kernel = residuals
    shifted = functools.partial(_gradients, stride)
    if planes.size == 0:
        return shifted(planes, kernel, cotangent)
    on_tpu = functools.partial(grouped_gradients, stride)
    return lax.platform_dependent(planes, kernel, cotangent, tpu=on_tpu, default=shifted)


def grouped_gradients(
    stride: int, planes: Array, kernel: Array, cotangent: Array
) -> tuple[Array, Array]:
    """Returns the gradients of `grouped`: those of autodiff."""
    _, pull = jax.vjp(functools.partial(grouped, stride=stride), planes, kernel)
    return pull(cotangent)


def _gradients(stride: int, planes: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
    if stride > 1:
        cotangent = _dilate(cotangent, stride, planes.shape[1:3])

    def gradients(planes: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        planes_cotangent = _correlate(cotangent, kernel[::-1, ::-1])
        kernel_cotangent = _kernel_gradient(planes, cotangent)
        return planes_cotangent.astype(planes.dtype), kernel_cotangent.astype(kernel.dtype)

    return materialised(gradients, planes, kernel, cotangent)


def _dilate(planes: Array, stride: int, size: tuple[int, ...]) -> Array:
    """Inserts `stride - 1` zeros between the pixels and pads to `size` rows and columns."""
    zero = jnp.zeros((), planes.dtype)
    spread = [
        (0, length - ((short - 1) * stride + 1), stride - 1)
        for length, short in zip(size, planes.shape[1:3], strict=True)
    ]
    return lax.pad(planes, zero, ((0, 0, 0), *spread, (0, 0, 0)))


def _kernel_gradient(planes: Array, cotangent: Array) -> Array:
    """Returns the float32 gradient with respect to the kernel."""
    if planes.size == 0:
        return _sum_over_pixels(planes, cotangent)
    # A chunk of a batch that several devices share would move planes between them.
    is_shared = max(jax.typeof(a).sharding.mesh.size for a in (planes, cotangent)) > 1
    on_cpu = _sum_over_pixels if is_shared else _kernel_gradient_in_chunks
    return lax.platform_dependent(planes, cotangent, cpu=on_cpu, default=_sum_over_pixels)


def _sum_over_pixels(planes: Array, cotangent: Array) -> Array:
    """Sums each tap's product over batch and pixels, in float32."""
    taps = [
        jnp.sum(_shift(planes, 1 - r, 1 - c) * cotangent, (0, 1, 2), jnp.float32) for r, c in _TAPS
    ]
    return jnp.stack(taps).reshape(3, 3, -1)


# How much of each of the two arrays the cache holds, and how many terms one sum has.
_CHUNK_BYTES, _TERMS = 2**20, 32


def _kernel_gradient_in_chunks(planes: Array, cotangent: Array) -> Array:
    """Sums a few images at a time, so that the nine sums read from cache: 3 times faster on CPU.

    The sums over rows and images are written out, because XLA:CPU vectorises a long sum of slices
    but not a reduction.
    """
    batch, height, width, nodes = planes.shape
    chunk = _largest_divisor(batch, _CHUNK_BYTES // planes[0].nbytes)
    images = _largest_divisor(chunk, _TERMS // height)
    shape = (chunk // images, images, height, width, nodes)

    def add(index: Array, totals: list[Array]) -> list[Array]:
        x, g = (
            lax.dynamic_slice_in_dim(a, index * chunk, chunk).reshape(shape).astype(jnp.float32)
            for a in (planes, cotangent)
        )
        pairs = zip(totals, _TAPS, strict=True)
        return [total + _sum_over_rows(x, g, row, column) for total, (row, column) in pairs]

    columns = [width - abs(c - 1) for _, c in _TAPS]
    start = [jnp.zeros((chunk // images, n, nodes), jnp.float32) for n in columns]
    totals = lax.fori_loop(0, batch // chunk, add, start)
    return jnp.stack([jnp.sum(total, (0, 1)) for total in totals]).reshape(3, 3, nodes)


def _largest_divisor(number: int, limit: int) -> int:
    return next(size for size in range(max(min(number, limit), 1), 0, -1) if number % size == 0)


def _sum_over_rows(planes: Array, cotangent: Array, row: int, column: int) -> Array:
    """Sums one tap's products of [groups, images, height, width, nodes] over images and rows."""
    _, images, height, width, _ = planes.shape
    rows, columns = _overlap(height, row - 1), _overlap(width, column - 1)
    x = planes[:, :, :, column - 1 + columns.start : column - 1 + columns.stop]
    g = cotangent[:, :, :, columns.start : columns.stop]
    zero = jnp.zeros_like(x[:, 0, 0])
    return sum((x[:, i, r + row - 1] * g[:, i, r] for i in range(images) for r in rows), zero)


def _overlap(size: int, shift: int) -> range:
    """Returns the pixels whose neighbour `shift` pixels further exists, too."""
    return range(max(0, -shift), min(size, size - shift))


depthwise_conv3x3.defvjp(_forward, _backward)
