"""MNIST with the tiny network and the recipe of the CIFAR-10 experiments, shortened to 5 epochs.

    python -m dnw_jax.main --config=configs/mnist_tiny.py --workdir=runs/mnist_tiny

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
Other networks: --config=configs/mnist_tiny.py:wiring=discrete,edges=random

Run time: 7 min 40 s on two CPU cores that did other work, too.
Test accuracy: 99.0 % (seed 0).
"""

from ml_collections import ConfigDict


def get_config(wiring: str = "static", edges: str = "dnw") -> ConfigDict:
    """Returns a shorter recipe of CIFAR-10; sets `model.wiring` and `model.edges`."""
    config = ConfigDict()
    config.batch_size = 512
    config.num_epochs = 5

    # No flip: a mirrored digit is another digit, or none.
    config.dataset = ConfigDict(
        {"name": "mnist", "image_size": 28, "num_channels": 1, "crop_padding": 2, "flip": False}
    )
    config.model = ConfigDict(
        {
            "name": "tiny",
            "wiring": wiring,
            "edges": edges,
            "sparsity": 0.95,
            "num_nodes": 800,
            "num_inputs": 32,
            "num_outputs": 100,
            "depth": 5,
        }
    )

    config.optimizer = ConfigDict({"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4})
    # The learning rate falls to a tenth twice, at the first epoch after each fraction of the run.
    config.schedule = ConfigDict({"name": "multistep", "milestones": (0.5, 0.75), "factor": 0.1})
    return config
