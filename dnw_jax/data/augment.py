"""Augmentation as pure functions of a key and an example's position: run them inside jit."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns `(images / 255 - mean) / std`.

    Args:
      images: uint8 [batch, height, width, channels].
      mean: of each channel, or one value for all channels, in units where white is 1.
      std: standard deviations, like `mean`.

    Returns:
      float32 [batch, height, width, channels].
    """
    scaled = images.astype(jnp.float32) / 255.0
    shifted = scaled - jnp.asarray(mean, jnp.float32)
    return shifted / jnp.asarray(std, jnp.float32)


def random_crop_flip(
    key: jax.Array, positions: jax.Array, images: jax.Array, padding: int, flip: bool
) -> jax.Array:
    """Returns images that are padded with zeros, cropped to their size and randomly mirrored.

    The distribution is that of torchvision's `RandomCrop(size, padding)` followed by
    `RandomHorizontalFlip()`: both offsets are uniform on 0..2*padding, and an image is mirrored
    with probability 1/2. The draws for an image depend only on `key` and its position, not on the
    rest of the batch. So several hosts that each augment a part of a batch get the images that one
    host would get.

    Args:
      key: a typed key (`jax.random.key`).
      positions: uint32 or int32 [batch], the examples' positions in the whole run.
      images: uint8 [batch, height, width, channels].
      padding: pixels added on each side; 0 for no crop. Static under jit.
      flip: whether to mirror images at random. Static under jit.

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
    # One gather of all pixels. On XLA:CPU a vmapped dynamic_slice is as fast by itself, but ten
    # times slower inside a lax.scan over steps. Products with one-hot matrices are twice as slow.
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _draw(
    key: jax.Array, position: jax.Array, padding: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Top and left of one example's crop (int32, 0..2*padding); whether to mirror it (bool)."""
    crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
    top, left = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    return top, left, jax.random.bernoulli(flip_key)
