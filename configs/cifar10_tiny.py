"""CIFAR-10 with a tiny network of 41 thousand live weights: Table 1 of the paper.

    python -m dnw_jax.main --config=configs/cifar10_tiny.py --workdir=runs/cifar10_tiny

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
The six rows of Table 1: configs/cifar10_tiny.py:wiring=W,edges=E, where W is static, discrete or
continuous, and E is dnw or random.

Run time: 75 minutes on two CPU cores (static), estimated from the speed of three epochs: 2,000
images a second.
Test accuracy: the paper gives, after 160 epochs, static dnw 80.9 %, random 76.1 %; discrete dnw
82.3 %, random 77.3 %; continuous dnw 83.1 %, random 78.5 %.
Here, after 6 epochs: static dnw 59.0 % (seed 0), random 55.9 %. After one epoch of
wiring=discrete with --config.schedule.name=constant: 45.4 %.
"""

from ml_collections import ConfigDict


def get_config(wiring: str = "static", edges: str = "dnw") -> ConfigDict:
    """Returns the recipe of the paper; sets `model.wiring` and `model.edges`."""
    config = ConfigDict()
    config.batch_size = 512
    config.num_epochs = 160

    config.dataset = ConfigDict(
        {"name": "cifar10", "image_size": 32, "num_channels": 3, "crop_padding": 4, "flip": True}
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
    # The learning rate falls to a tenth at epochs 80 and 120.
    config.schedule = ConfigDict({"name": "multistep", "milestones": (0.5, 0.75), "factor": 0.1})
    return config
