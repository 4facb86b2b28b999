"""Augmentation as pure functions of (key, position): jit them together with the training step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """`(images / 255 - mean) / std`.

    Args:
      images: uint8 [batch, height, width, channels].
      mean: per channel, or one value for all channels, in units where white is 1.
      std: likewise.

    Returns:
      float32 [batch, height, width, channels].
    """
    scaled = images.astype(jnp.float32) / 255.0
    shifted = scaled - jnp.asarray(mean, jnp.float32)
    return shifted / jnp.asarray(std, jnp.float32)


def random_crop_flip(
    key: jax.Array, positions: jax.Array, images: jax.Array, padding: int, flip: bool
) -> jax.Array:
    """Pads with zeros, crops back to the same size at a random place, mirrors every other image.

    The distribution of torchvision's `RandomCrop(size, padding)` followed by
    `RandomHorizontalFlip()`: both offsets uniform on 0..2*padding, a flip with probability 1/2.
    What happens to an image depends only on `key` and its position, never on its place in the
    batch or on the batch size: slices of a batch on several hosts see what one host would see.

    Args:
      key: a typed key (`jax.random.key`).
      positions: uint32 or int32 [batch], the examples' positions in the whole run.
      images: uint8 [batch, height, width, channels].
      padding: pixels added on each side; 0 for no crop. Static under jit.
      flip: whether to mirror at all. Static under jit.

    Returns:
      uint8 [batch, height, width, channels].
    """
    if not padding and not flip:
        return images
    batch, height, width, _ = images.shape
    tops, lefts, mirrored = jax.vmap(lambda position: _draw(key, position, padding))(positions)
    rows = tops[:, None] + jnp.arange(height)
    columns = jnp.arange(width)
    if flip:
        columns = jnp.where(mirrored[:, None], columns[::-1], columns)
    columns = lefts[:, None] + columns
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # One gather of pixels. On XLA:CPU a vmapped dynamic_slice is as fast alone, but ten times
    # slower inside a lax.scan over steps; products with one-hot matrices are twice as slow.
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _draw(
    key: jax.Array, position: jax.Array, padding: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One example's top, left (int32, 0..2*padding) and whether it is mirrored (bool)."""
    crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    return top, left, jax.random.bernoulli(flip_key)
