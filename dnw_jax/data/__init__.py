"""Images in memory, batches as pure functions of the step, augmentation inside jit.

`load_split` decodes a dataset once into one uint8 array that can live on the device.
`train_indices` and `evaluation_batches` say which examples make up a batch;
`random_crop_flip` and `normalise` turn those images into what a model sees.
"""

from dnw_jax.data.augment import normalise, random_crop_flip
from dnw_jax.data.batches import evaluation_batches, steps_per_epoch, train_indices
from dnw_jax.data.in_memory import STATISTICS, Split, load_split
from dnw_jax.data.on_device import DeviceSplit

__all__ = [
    "STATISTICS",
    "DeviceSplit",
    "Split",
    "evaluation_batches",
    "load_split",
    "normalise",
    "random_crop_flip",
    "steps_per_epoch",
    "train_indices",
]
