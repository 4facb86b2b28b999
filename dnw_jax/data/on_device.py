"""A split that lives on the device; batches are made of it inside jit."""

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
    """All images of a split as a pytree, with how they become what a model sees."""

    images: UInt8[Array, "examples height width channels"]
    labels: Int[Array, " examples"]
    statistics: Statistics
    crop_padding: int
    flip: bool

    @classmethod
    def of(cls, split: Split, dataset: ConfigDict) -> "DeviceSplit":
        """`split` with the augmentation of the `dataset` section of a config."""
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
        """Augmented and normalised: `image` float32 [batch, height, width, channels], `label`."""
        images = self.images[indices]
        images = random_crop_flip(key, positions, images, self.crop_padding, self.flip)
        return {"image": self._normalised(images), "label": self.labels[indices]}

    def evaluation_batch(
        self, indices: Int[Array, " batch"], mask: Bool[Array, " batch"]
    ) -> dict[str, Array]:
        """As they are: `image` and `label` as in training, and the mask, false for padding."""
        image = self._normalised(self.images[indices])
        return {"image": image, "label": self.labels[indices], "mask": mask}

    def _normalised(self, images: Array) -> Float[Array, "batch height width channels"]:
        return normalise(images, *self.statistics)
