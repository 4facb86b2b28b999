"""A split that lives on the device. Batches are gathered from it inside jit."""

import functools
from dataclasses import dataclass

import jax
from jaxtyping import Array, Bool, Float, Int, Key, UInt, UInt8
from ml_collections import ConfigDict

from dnw_jax.data.augment import normalise, random_crop_flip
from dnw_jax.data.dataset_info import STATISTICS, Statistics
from dnw_jax.data.in_memory import Split


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "labels"],
    meta_fields=["statistics", "crop_padding", "flip"],
)
@dataclass(frozen=True)
class DeviceSplit:
    """All images of a split and their augmentation, as a pytree.

    Attributes:
      images: all images of the split, uint8.
      labels: int32, 0..num_classes-1.
      statistics: mean and standard deviation, see `normalise`.
      crop_padding: see `random_crop_flip`.
      flip: see `random_crop_flip`.
    """

    images: UInt8[Array, "examples height width channels"]
    labels: Int[Array, " examples"]
    statistics: Statistics
    crop_padding: int
    flip: bool

    @classmethod
    def of(cls, split: Split, dataset: ConfigDict) -> "DeviceSplit":
        """Puts `split` on the device; `dataset` is a section of a config."""
        return cls(
            jax.numpy.asarray(split.images),
            jax.numpy.asarray(split.labels),
            STATISTICS[dataset.name],
            dataset.crop_padding,
            dataset.flip,
        )

    def train_batch(
        self, indices: Int[Array, " batch"], positions: UInt[Array, " batch"], key: Key[Array, ""]
    ) -> dict[str, Array]:
        """Returns the examples `indices`, augmented and normalised.

        Args:
          indices: of the examples in the split.
          positions: of the examples in the whole run; the augmentation depends on them.
          key: of the augmentation.

        Returns:
          `image` float32 [batch, height, width, channels] and `label` int32 [batch].
        """
        images = self.images[indices]
        images = random_crop_flip(key, positions, images, self.crop_padding, self.flip)
        return {"image": self._normalised(images), "label": self.labels[indices]}

    def evaluation_batch(
        self, indices: Int[Array, " batch"], mask: Bool[Array, " batch"]
    ) -> dict[str, Array]:
        """Returns `image` and `label` as in training, but not augmented, and `mask`."""
        image = self._normalised(self.images[indices])
        return {"image": image, "label": self.labels[indices], "mask": mask}

    def _normalised(self, images: Array) -> Float[Array, "batch height width channels"]:
        return normalise(images, *self.statistics)
