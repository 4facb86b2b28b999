"""Batch normalisation as PyTorch's, of all channels or of a range of them."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.ops.norms import batch_norm, normalise_by_statistics


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
        rectify: bool = False,
    ) -> Float[Array, "batch height width channels"]:
        """Normalises `planes`, which are those of the given range of channels.

        With `rectify` negative results become zero.
        """
        scale, bias = self.scale[channels], self.bias[channels]
        if not train:
            mean, var = self.mean[channels], self.var[channels]
            return normalise_by_statistics(planes, mean, var, scale, bias, rectify=rectify)
        out, mean, var = batch_norm(planes, scale, bias, rectify)
        count = planes[..., 0].size
        self._remember(mean, var * (count / max(count - 1, 1)), channels)
        return out

    def _remember(self, mean: Array, var: Array, channels: slice) -> None:
        def moved(running: Array, new: Array) -> Array:
            return running.at[channels].set(0.9 * running[channels] + 0.1 * lax.stop_gradient(new))

        # New variables: assigning to the old ones is spelt differently in Flax 0.11 and 0.12.
        self.mean = nnx.BatchStat(moved(self.mean[...], mean))
        self.var = nnx.BatchStat(moved(self.var[...], var))
