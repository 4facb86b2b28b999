"""Datasets, and batches as pure functions of the seed and the step.

`load_split` decodes a small dataset once into one uint8 array, which `DeviceSplit` keeps on the
device. `Photographs` decodes ImageNet in worker processes while a run trains. `train_indices` and
`evaluation_batches` list the examples of each batch. `random_crop_flip` augments and `normalise`
normalises images inside jit.
"""

from dnw_jax.data.augment import normalise, random_crop_flip
from dnw_jax.data.batches import evaluation_batches, steps_per_epoch, train_indices
from dnw_jax.data.dataset_info import STATISTICS
from dnw_jax.data.in_memory import Split, load_split
from dnw_jax.data.on_device import DeviceSplit
from dnw_jax.data.streaming import NumpyBatch, Photographs

__all__ = [
    "STATISTICS",
    "DeviceSplit",
    "NumpyBatch",
    "Photographs",
    "Split",
    "evaluation_batches",
    "load_split",
    "normalise",
    "random_crop_flip",
    "steps_per_epoch",
    "train_indices",
]
