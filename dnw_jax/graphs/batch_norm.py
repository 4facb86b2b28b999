"""PyTorch's batch normalisation, of all channels or of a range of them."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from dnw_jax.ops.norms import batch_norm, normalise_by_statistics


class BatchNorm(nnx.Module):
    """PyTorch's batch normalisation, of all channels or of a range of them.

    Training normalises by the mean and variance of the batch and moves the running statistics a
    tenth of the way to them (the running variance is the unbiased one). Evaluation normalises by
    the running statistics. Flax's BatchNorm does not fit: it takes all channels at once, whereas
    blocked graphs normalise a block at a time, and it keeps 0.99 of the running statistics.
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
        """Returns normalised planes.

        Args:
          planes: the planes of the range `channels`.
          train: whether to use the statistics of the batch and to move the running ones.
          channels: the range of channels that `planes` holds.
          rectify: whether a ReLU follows.
        """
        scale, bias = self.scale[channels], self.bias[channels]
        if not train:
            mean, var = self.mean[channels], self.var[channels]
            return normalise_by_statistics(planes, mean, var, scale, bias, rectify=rectify)
        normalised, mean, var = batch_norm(planes, scale, bias, rectify)
        count = planes[..., 0].size
        self._move_statistics(mean, var * (count / max(count - 1, 1)), channels)
        return normalised

    def _move_statistics(self, mean: Array, var: Array, channels: slice) -> None:
        def moved(running: Array, new: Array) -> Array:
            kept, added = 0.9 * running[channels], 0.1 * lax.stop_gradient(new)
            return running.at[channels].set(kept + added)

        # New variables, because Flax 0.11 and 0.12 differ in how values are assigned to old ones.
        self.mean = nnx.BatchStat(moved(self.mean[...], mean))
        self.var = nnx.BatchStat(moved(self.var[...], var))
