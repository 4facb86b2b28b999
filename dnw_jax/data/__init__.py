"""Images, in memory or as they are needed; batches as pure functions of the step.

`load_split` decodes a dataset once into one uint8 array that can live on the device.
`train_indices` and `evaluation_batches` say which examples make up a batch;
`random_crop_flip` and `normalise` turn those images into what a model sees, inside jit.
`Photographs` reads ImageNet while a run goes on.
"""

from dnw_jax.data.augment import normalise, random_crop_flip
from dnw_jax.data.batches import evaluation_batches, steps_per_epoch, train_indices
from dnw_jax.data.dataset_info import STATISTICS
from dnw_jax.data.in_memory import Split, load_split
from dnw_jax.data.on_device import DeviceSplit
from dnw_jax.data.streaming import HostBatch, Photographs

__all__ = [
    "STATISTICS",
    "DeviceSplit",
    "HostBatch",
    "Photographs",
    "Split",
    "evaluation_batches",
    "load_split",
    "normalise",
    "random_crop_flip",
    "steps_per_epoch",
    "train_indices",
]
