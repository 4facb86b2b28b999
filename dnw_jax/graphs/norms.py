"""Normalisation of planes: over each image's pixels, or over the batch's. Statistics in float32."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

_EPSILON = 1e-5


def instance_norm(
    planes: Float[Array, "batch height width nodes"],
    scale: Float[Array, " nodes"],
    bias: Float[Array, " nodes"],
) -> Float[Array, "batch height width nodes"]:
    """Gives each plane of each image mean 0 and variance 1 over its pixels, then scale and bias."""
    values = planes.astype(jnp.float32)
    centred = values - jnp.mean(values, (1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centred), (1, 2), keepdims=True)
    return (centred * lax.rsqrt(variance + _EPSILON) * scale + bias).astype(planes.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation as PyTorch's, of all channels or of a range of them.

    Training normalises by the batch's own mean and variance and moves the running ones a tenth of
    the way (the variance without bias); evaluation normalises by the running ones. Flax's own norms
    all channels at once, and keeps 0.99 of the old statistics.
    """

    def __init__(self, num_channels: int):
        self.scale = nnx.Param(jnp.ones(num_channels))
        self.bias = nnx.Param(jnp.zeros(num_channels))
        self.mean = nnx.BatchStat(jnp.zeros(num_channels))
        self.var = nnx.BatchStat(jnp.ones(num_channels))

    def __call__(
        self,
        planes: Float[Array, "batch height width channels"],
        *,
        train: bool,
        channels: slice = slice(None),
    ) -> Float[Array, "batch height width channels"]:
        """Normalises `planes`, which are those of the given range of channels."""
        values = planes.astype(jnp.float32)
        if train:
            mean = jnp.mean(values, (0, 1, 2))
            centred = values - mean
            var = jnp.mean(jnp.square(centred), (0, 1, 2))
            count = planes[..., 0].size
            self._remember(mean, var * (count / max(count - 1, 1)), channels)
        else:
            centred, var = values - self.mean[channels], self.var[channels]
        factor = lax.rsqrt(var + _EPSILON) * self.scale[channels]
        return (centred * factor + self.bias[channels]).astype(planes.dtype)

    def _remember(self, mean: Array, var: Array, channels: slice) -> None:
        def moved(running: Array, new: Array) -> Array:
            return running.at[channels].set(0.9 * running[channels] + 0.1 * lax.stop_gradient(new))

        # New variables: assigning to the old ones is spelt differently in Flax 0.11 and 0.12.
        self.mean = nnx.BatchStat(moved(self.mean[...], mean))
        self.var = nnx.BatchStat(moved(self.var[...], var))
