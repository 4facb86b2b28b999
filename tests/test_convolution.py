"""The dense convolution and its gradients equal those of `lax`, inside a loop and outside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dnw_jax.ops.convolution import conv2d

pytestmark = pytest.mark.usefixtures("quick_compilation")

CASES = [  # image, window, inputs, outputs, stride, padding
    ((6, 6), 3, 2, 4, 1, 1),
    ((7, 5), 3, 3, 2, 2, 1),
    ((9, 9), 7, 3, 4, 2, 3),
    ((8, 8), 5, 2, 2, 3, 2),
    ((6, 6), 3, 2, 3, 1, 0),
    ((5, 7), 1, 3, 4, 1, 0),
    ((6, 5), 1, 3, 4, 2, 0),
    ((4, 4), 1, 2, 2, 1, 1),
    ((2, 2), 3, 2, 4, 1, 1),
    ((5, 4), 3, 2, 3, 2, 1),
]


def lax_convolution(planes: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        planes,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_lax(case: tuple, looped: bool) -> None:
    (height, width), window, num_in, num_out, stride, padding = case
    keys = jax.random.split(jax.random.key(0), 3)
    planes = jax.random.normal(keys[0], (3, height, width, num_in))
    kernel = jax.random.normal(keys[1], (window, window, num_in, num_out))

    @functools.partial(jax.jit, static_argnums=0)
    def run(apply, planes, kernel):
        def once(planes):
            out, pull = jax.vjp(lambda x, k: apply(x, k, stride, padding), planes, kernel)
            cotangent = jax.random.normal(keys[2], out.shape)
            return (out, *pull(cotangent))

        if not looped:
            return once(planes)
        empty = jax.tree.map(jnp.zeros_like, once(planes))
        return lax.fori_loop(
            0, 2, lambda i, sums: jax.tree.map(jnp.add, sums, once(planes + i)), empty
        )

    for ours, theirs in zip(
        run(conv2d, planes, kernel), run(lax_convolution, planes, kernel), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        assert ours.dtype == theirs.dtype


def test_in_bfloat16() -> None:
    planes = jax.random.normal(jax.random.key(0), (2, 6, 6, 3), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4), jnp.bfloat16)
    ours, theirs = (
        jax.vjp(lambda x, k, f=f: f(x, k, 1, 1), planes, kernel) for f in (conv2d, lax_convolution)
    )
    cotangent = jnp.ones_like(ours[0])
    pairs = zip((ours[0], *ours[1](cotangent)), (theirs[0], *theirs[1](cotangent)), strict=True)
    for mine, expected in pairs:
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            *(np.asarray(a, np.float32) for a in (mine, expected)), rtol=2e-2, atol=0.1
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_of_no_images(case: tuple) -> None:
    (height, width), window, num_in, num_out, stride, padding = case
    planes, kernel = (
        jnp.ones((0, height, width, num_in)),
        jnp.ones((window, window, num_in, num_out)),
    )
    out, pull = jax.vjp(lambda x, k: conv2d(x, k, stride, padding), planes, kernel)
    to_planes, to_kernel = jax.jit(pull)(out)
    assert out.shape == lax_convolution(planes, kernel, stride, padding).shape
    assert to_planes.shape == planes.shape
    np.testing.assert_array_equal(to_kernel, 0)
