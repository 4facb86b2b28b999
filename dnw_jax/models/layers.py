"""Flax's dense layers with PyTorch's default initial weights: uniform in +-1 / sqrt(fan_in)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.ops.convolution import conv_general_dilated


def dense_conv(
    num_in: int,
    num_out: int,
    window: int,
    *,
    stride: int = 1,
    use_bias: bool = True,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Returns a convolution padded with `window // 2` zeros on each side.

    Args:
      num_in: channels of the input planes.
      num_out: channels of the output planes.
      window: height and width of the kernel, odd.
      stride: the output has 1 / `stride` of the input's height and width, rounded up.
      dtype: of the computation; the parameters are float32.
    """
    init = uniform_fan_in(num_in * window * window)
    return nnx.Conv(
        num_in,
        num_out,
        (window, window),
        strides=stride,
        padding=window // 2,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def linear(num_in: int, num_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a linear layer with bias, float32."""
    init = uniform_fan_in(num_in)
    return nnx.Linear(num_in, num_out, kernel_init=init, bias_init=init, rngs=rngs)
