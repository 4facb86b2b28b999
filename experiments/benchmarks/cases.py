"""The models to time. Imports no dnw_jax, which the published code's interpreter may lack."""

from typing import NamedTuple


class Case(NamedTuple):
    """A model of dnw_jax and of the published code, on random images.

    Attributes:
      config: the config file of dnw_jax.
      reference: the published code's settings: a file under `apps/`, or the name of a ResNet.
      batch_size: the published batch size, or one that a machine without accelerator can handle.
      image_size: height and width in pixels.
      num_classes: number of labels.
      target: the training step must be at least this many times as fast as the published code's.
      products: numbers of products of all states with all weights, in a training step and in an
        evaluation. Only for continuous time, where a loop makes them and XLA cannot count them.
        Both codes make as many from the published initialisation.
    """

    config: str
    reference: str
    batch_size: int
    image_size: int
    num_classes: int
    target: float
    products: tuple[int, int] | None = None


# The graphs of the MobileNetV1-like chain x0.225, and their numbers of edges.
SHAPES = ((32, 64), (192, 256), (384, 512), (2816, 3072), (1536, 2048))
BUDGETS = (104, 1245, 4977, 72991, 79627)

CASES = {
    "static": Case(
        "configs/cifar10_tiny.py:wiring=static", "small_scale/static_dnw.yml", 512, 32, 10, 2.5
    ),
    "discrete": Case(
        "configs/cifar10_tiny.py:wiring=discrete",
        "small_scale/discrete_time_dnw.yml",
        128,
        32,
        10,
        2.0,
    ),
    "continuous": Case(
        "configs/cifar10_tiny.py:wiring=continuous",
        "small_scale/continuous_time_dnw.yml",
        128,
        32,
        10,
        2.0,
        products=(94, 32),
    ),
    "mbv1_cifar": Case(
        "configs/cifar10_mbv1.py", "medium_scale/mobilenetv1_dnw_x225.yml", 128, 32, 10, 3.0
    ),
    "mbv1_imagenet": Case(
        "configs/imagenet_mbv1.py", "large_scale/mobilenetv1_dnw_x225.yml", 16, 224, 1000, 2.0
    ),
    "resnet50": Case("configs/imagenet_resnet.py", "resnet50 allsparse10", 16, 64, 1000, 1.5),
}
