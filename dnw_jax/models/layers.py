"""Flax's dense layers as PyTorch starts them."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.ops.convolution import conv_general_dilated


def dense_conv(
    num_in: int,
    num_out: int,
    size: int,
    *,
    stride: int = 1,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution of `size` x `size` that keeps the planes' size, but for the stride."""
    init = uniform_fan_in(num_in * size * size)
    return nnx.Conv(
        num_in,
        num_out,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def linear(num_in: int, num_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with bias."""
    init = uniform_fan_in(num_in)
    return nnx.Linear(num_in, num_out, kernel_init=init, bias_init=init, rngs=rngs)
