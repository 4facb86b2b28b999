"""ImageNet with a sparse ResNet, trained sparse from the first step: Table 4 of the paper.

    python -m dnw_jax.main --config=configs/imagenet_resnet.py --workdir=runs/imagenet_resnet

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
The top-1 accuracy of ResNet-50 in Table 4, by sparsity and first layer ("allsparse" and
"ignorefirst" in the published code):

    sparsity              0.9     0.8     0.7     0.6     0.5     0.4     0.3     0.2     0.1
    first_layer=sparse  74.026  76.158  76.904  77.290  77.528  77.536  77.604  77.610  77.488 %
    first_layer=dense   75.044  76.600  77.076  77.456  77.570  77.564  77.492  77.284  77.382 %

edges=complete ("dense") has 77.510 %. The published code also has edges=targeted_dropout
("tdsparse").

Run time: a run on the whole of ImageNet was not tried.
Test accuracy: as above.
"""

from ml_collections import ConfigDict


def get_config(
    arch: str = "resnet50",
    sparsity: float = 0.9,
    first_layer: str = "sparse",
    edges: str = "dnw",
) -> ConfigDict:
    """Returns the recipe of the paper, which is NVIDIA's for ResNet v1.5."""
    config = ConfigDict()
    config.batch_size = 256
    config.num_epochs = 100

    config.dataset = ConfigDict(
        {"name": "imagenet2012", "image_size": 224, "num_channels": 3, "num_classes": 1000}
    )
    config.model = ConfigDict(
        {
            "name": "resnet",
            "arch": arch,
            "sparsity": sparsity,
            "first_layer": first_layer,
            "edges": edges,
        }
    )

    config.optimizer = ConfigDict(
        {
            "learning_rate": 0.256,
            "momentum": 0.875,
            "weight_decay": 3.0517578125e-05,
            # By name, like the published code: so the norms of the shortcuts are decayed.
            "no_decay": "bn",
        }
    )
    config.schedule = ConfigDict({"name": "cosine", "warmup_epochs": 5, "per_epoch": True})
    config.loss = ConfigDict({"label_smoothing": 0.1})
    return config
