"""The single-channel convolution and its gradients equal those of XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
import pytest
from jax import lax
from small_graphs import close, normal

from dnw_jax.ops.depthwise import depthwise_conv3x3

pytestmark = pytest.mark.usefixtures("quick_compilation")


def grouped_convolution(planes: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        planes,
        kernel[:, :, None],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=planes.shape[-1],
        precision="highest",
    )


def with_gradients(convolution, planes, kernel, stride):
    """Returns the output, and both gradients for a random cotangent."""
    batch, height, width, nodes = planes.shape
    shape = (batch, -(-height // stride), -(-width // stride), nodes)
    dtype = jnp.promote_types(planes.dtype, kernel.dtype)
    cotangent = normal(shape, 2, jnp.bfloat16).astype(dtype)

    @jax.jit
    def run(planes, kernel, cotangent):
        out, pull = jax.vjp(lambda p, k: convolution(p, k, stride), planes, kernel)
        return out, *pull(cotangent)

    return run(planes, kernel, cotangent)


SIZES = [  # (batch, height, width, nodes), stride
    ((1, 8, 8, 5), 1),
    ((2, 7, 5, 3), 2),
    ((3, 5, 8, 2), 1),
    ((4, 9, 9, 2), 2),
    ((6, 4, 4, 3), 2),
    ((2, 1, 1, 2), 1),
    ((1, 2, 3, 1), 2),
]


@pytest.mark.parametrize(("shape", "stride"), SIZES, ids=str)
def test_depthwise_convolution(shape: tuple[int, ...], stride: int) -> None:
    planes, kernel = normal(shape, 0), normal((3, 3, shape[-1]), 1)
    ours = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    theirs = with_gradients(grouped_convolution, planes, kernel, stride)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype
        close(mine, expected)
    close(ours[0], numpy_forward.convolution3x3(*map(np.float64, (planes, kernel)), stride))


def test_depthwise_convolution_in_bfloat16() -> None:
    stride = 2
    planes, kernel = normal((4, 9, 8, 6), 0, jnp.bfloat16), normal((3, 3, 6), 1, jnp.bfloat16)
    ours = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    exact = [x.astype(jnp.float32) for x in (planes, kernel)]
    theirs = with_gradients(grouped_convolution, *exact, stride)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.dtype == jnp.bfloat16
        close(mine, expected, 2**-7)


def test_kernel_gradient_of_bfloat16_is_summed_in_float32() -> None:
    # 4096 ones: a sum in bfloat16 stops at 256.
    planes, kernel = jnp.ones((16, 16, 16, 1), jnp.bfloat16), jnp.ones((3, 3, 1), jnp.bfloat16)
    _, pull = jax.vjp(jax.jit(lambda k: depthwise_conv3x3(planes, k)), kernel)
    (gradient,) = pull(jnp.ones_like(planes))
    assert float(gradient[1, 1, 0]) == 4096


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("planes_dtype", "kernel_dtype"),
    [(jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.float32)],
    ids=lambda dtype: dtype.__name__,
)
def test_cotangents_have_the_dtype_of_their_primals(
    planes_dtype: jnp.dtype, kernel_dtype: jnp.dtype, stride: int
) -> None:
    planes, kernel = normal((2, 5, 4, 3), 0, planes_dtype), normal((3, 3, 3), 1, kernel_dtype)
    ours = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    assert [array.dtype for array in ours] == [jnp.float32, planes_dtype, kernel_dtype]
    exact = [x.astype(jnp.float32) for x in (planes, kernel)]
    for mine, expected in zip(
        ours, with_gradients(grouped_convolution, *exact, stride), strict=True
    ):
        close(mine, expected, 2**-7)


@pytest.mark.parametrize("shape", [(0, 8, 8, 4), (2, 8, 8, 0)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_no_images_or_no_nodes(shape: tuple[int, ...], stride: int) -> None:
    planes, kernel = jnp.ones(shape), jnp.ones((3, 3, shape[-1]))
    out, to_planes, to_kernel = with_gradients(depthwise_conv3x3, planes, kernel, stride)
    assert out.shape == (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), shape[3])
    assert to_planes.shape == shape
    np.testing.assert_array_equal(to_kernel, 0)
