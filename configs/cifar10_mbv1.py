"""CIFAR-10 with a MobileNetV1 whose wiring is learned: Table 3 of the paper.

    python -m dnw_jax.main --config=configs/cifar10_mbv1.py --workdir=runs/cifar10_mbv1

The data is read from TFDS's default folder, or from --config.dataset.data_dir=FOLDER.
The rows of Table 3, with the test accuracy that the paper gives (mean of 5 runs):

    MobileNetV1 x0.25     configs/cifar10_mobilenet.py:width=0.25                       86.3 %
    random graph          configs/cifar10_mbv1.py:edges=random                          87.2 %
    no update rule        configs/cifar10_mbv1.py:edges=dnw_no_update                   86.7 %
    L1 + anneal           configs/cifar10_mbv1.py:edges=l1_anneal                       84.3 %
    targeted dropout      configs/cifar10_mbv1.py:edges=targeted_dropout                89.2 %
    DNW                   configs/cifar10_mbv1.py:edges=dnw                             89.7 %

Targeted dropout that keeps equally many edges into each node: edges=targeted_dropout_per_node.
Two rows need a trained complete graph: first run configs/cifar10_mbv1.py:edges=complete with
--workdir=runs/complete.

    lottery ticket        configs/cifar10_mbv1.py:edges=lottery_ticket                  87.9 %
                          --config.init_from=runs/complete
    fine-tune             configs/cifar10_mbv1.py:edges=fine_tune                       89.4 %
                          --config.init_from=runs/complete
    ... at a lower rate   --config.optimizer.learning_rate=0.01                         89.7 %
                          --config.optimizer.learning_rate=0.001                        88.7 %

Run time: the whole run was not tried. 200 steps with --config.batch_size=32 and their evaluation
take 1 to 5 minutes on two CPU cores that do other work, too.
Test accuracy: as above, after 160 epochs. The 200 steps reach 21 % (dnw) to 38 %.
"""

from ml_collections import ConfigDict


def get_config(edges: str = "dnw", multiplier: float = 0.225) -> ConfigDict:
    """Returns the recipe of the paper, with as many edges as MobileNetV1 x `multiplier`."""
    config = ConfigDict()
    config.batch_size = 128
    config.num_epochs = 160

    config.dataset = ConfigDict(
        {"name": "cifar10", "image_size": 32, "num_channels": 3, "crop_padding": 4, "flip": True}
    )
    config.model = ConfigDict({"name": "mbv1", "edges": edges, "sparsity": 1 - multiplier})

    config.optimizer = ConfigDict({"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4})
    config.schedule = ConfigDict({"name": "cosine"})
    return config
