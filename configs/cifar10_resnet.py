"""CIFAR-10 with a ResNet that is sparse from the first step; 3x3 stem, no pooling.

    python -m dnw_jax.main --config=configs/cifar10_resnet.py --workdir=runs/cifar10_resnet

Run time: about 10 minutes on two CPU cores with width=0.25 and --config.num_epochs=5. The whole
run was not tried.
Test accuracy: with these arguments 74.4 % (edges=random 71.6 %, edges=complete 79.7 %; one seed).
docs/sparse_training.md compares with pruning after training.
"""

from ml_collections import ConfigDict


def get_config(
    arch: str = "resnet18",
    sparsity: float = 0.9,
    first_layer: str = "sparse",
    edges: str = "dnw",
    width: float = 1.0,
) -> ConfigDict:
    """Returns the recipe for a ResNet.

    `width` is the factor of every number of channels, `sparsity` the share of weights that are not
    real.
    """
    config = ConfigDict()
    config.batch_size = 128
    config.num_epochs = 160

    config.dataset = ConfigDict(
        {"name": "cifar10", "image_size": 32, "num_channels": 3, "num_classes": 10}
    )
    config.model = ConfigDict(
        {
            "name": "resnet",
            "arch": arch,
            "sparsity": sparsity,
            "first_layer": first_layer,
            "edges": edges,
            "width": width,
            "small_images": True,
        }
    )

    config.optimizer = ConfigDict(
        {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "no_decay": "bn"}
    )
    config.schedule = ConfigDict({"name": "cosine"})
    return config
