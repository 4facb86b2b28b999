"""CIFAR-10 with a sparse ResNet: 3x3 stem, no pooling; sparse from the first step.

    python -m dnw_jax.main --config=configs/cifar10_resnet.py --workdir=runs/cifar10_resnet

Run time: with width=0.25 and --config.num_epochs=5 some 10 minutes on two CPU cores.
Test accuracy: with these 74.4 % (edges=random 71.6 %, edges=complete 79.7 %; one seed). The whole
recipe was not run here. docs/sparse_training.md compares with pruning after training.
"""

from ml_collections import ConfigDict


def get_config(
    arch: str = "resnet18",
    sparsity: float = 0.9,
    first_layer: str = "sparse",
    edges: str = "dnw",
    width: float = 1.0,
) -> ConfigDict:
    """ResNet-18 with `width` of its channels, and `sparsity` of its weights left out."""
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
