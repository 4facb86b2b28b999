"""ImageNet with a MobileNetV1 whose wiring is learned: Table 2 of the paper.

    python -m dnw_jax.main --config=configs/imagenet_mbv1.py --workdir=runs/imagenet_mbv1

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
The rows of Table 2, with the parameters, multiply-adds and top-1 accuracy that the paper gives:

    random graph x0.225  imagenet_mbv1.py:edges=random                    1.2M   55.7M  53.3 %
    DNW-Small x0.15      imagenet_mbv1.py:multiplier=0.15,small=True     0.24M   22.1M  50.3 %
    DNW-Small x0.225     imagenet_mbv1.py:small=True                      0.4M   41.2M  59.9 %
    DNW x0.225           imagenet_mbv1.py                                 1.1M   42.1M  60.9 %
    DNW x0.3             imagenet_mbv1.py:multiplier=0.3                  1.3M   66.7M  65.0 %
    random graph x0.49   imagenet_mbv1.py:edges=random,multiplier=0.49    1.8M    170M  64.1 %
    DNW x0.49            imagenet_mbv1.py:multiplier=0.49                 1.8M    154M  70.4 %

The dense MobileNetV1 x0.25 (0.5M, 41M, 50.6 %) and x0.5 (width=0.5: 1.3M, 149M, 63.7 %):

    configs/cifar10_mobilenet.py:width=0.25 --config.dataset.name=imagenet2012
    --config.dataset.image_size=224 --config.dataset.num_classes=1000 --config.batch_size=512
    --config.num_epochs=250 --config.optimizer.weight_decay=5e-5

Run time: a run on the whole of ImageNet was not tried. On a sample of 450 photographs at 32
pixels, without augmentation, 600 steps of 45 photographs take 5 minutes on two CPU cores and learn
all of them.
Test accuracy: as above.
"""

from ml_collections import ConfigDict


def get_config(edges: str = "dnw", multiplier: float = 0.225, small: bool = False) -> ConfigDict:
    """Returns the recipe of the paper, with as many edges as MobileNetV1 x `multiplier`.

    `small` makes the last linear layer a graph, too.
    """
    config = ConfigDict()
    config.batch_size = 512
    config.num_epochs = 250

    config.dataset = ConfigDict(
        {"name": "imagenet2012", "image_size": 224, "num_channels": 3, "num_classes": 1000}
    )
    config.model = ConfigDict(
        {"name": "mbv1", "edges": edges, "sparsity": 1 - multiplier, "small": small}
    )

    config.optimizer = ConfigDict({"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-5})
    config.schedule = ConfigDict({"name": "cosine"})
    return config
