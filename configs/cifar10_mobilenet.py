"""CIFAR-10 with the dense MobileNetV1: the baseline of Table 3 of the paper.

    python -m dnw_jax.main --config=configs/cifar10_mobilenet.py --workdir=runs/cifar10_mobilenet

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
Run time: the whole run of 160 epochs, 391 steps each, was not tried.
Test accuracy: the paper gives 86.3 % for width=0.25.
"""

from ml_collections import ConfigDict


def get_config(width: float = 0.25) -> ConfigDict:
    """Returns the recipe of the paper; `width` is the factor of every number of channels."""
    config = ConfigDict()
    config.batch_size = 128
    config.num_epochs = 160

    config.dataset = ConfigDict(
        {"name": "cifar10", "image_size": 32, "num_channels": 3, "crop_padding": 4, "flip": True}
    )
    config.model = ConfigDict({"name": "mobilenet", "width": width})

    config.optimizer = ConfigDict({"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4})
    config.schedule = ConfigDict({"name": "cosine"})
    return config
