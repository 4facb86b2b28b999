"""The runs that are compared: small enough for eight devices made of two cores."""

from pathlib import Path

from experiments.hosts.launch import ROOT

# 20 steps with a row of metrics every 5. The learning rates are small enough that rounding moves no
# weight across the threshold of the real edges: a flipped edge is a real difference.
_COMMON = {
    "num_steps": "20",
    "log.every_steps": "5",
    "evaluate.every_steps": "20",
    "checkpoint.every_steps": "5",
    "checkpoint.keep": "9",
    "schedule.name": "constant",
    "batch_size": "64",
}
_PHOTOGRAPHS = {
    "dataset.name": "imagenet2012",
    "dataset.num_classes": "1000",
    "dataset.image_size": "32",
    "dataset.num_workers": "1",
}
SMALL = "24 nodes, synthetic images"
_CASES: dict[str, tuple[str, dict[str, str]]] = {
    SMALL: (
        "digits.py",
        {
            "dataset.name": "synthetic",
            "batch_size": "32",
            "dataset.image_size": "8",
            "model.num_nodes": "24",
            "model.num_inputs": "4",
            "model.num_outputs": "8",
            "model.depth": "3",
            "model.sparsity": "0.5",
        },
    ),
    "static, CIFAR-10": ("cifar10_tiny.py:wiring=static,edges=dnw", {}),
    "MobileNetV1-like, CIFAR-10": ("cifar10_mbv1.py", {"model.width": "0.125"}),
    # Few of its weights are real, so each of them has a large gradient.
    "sparse ResNet-18, CIFAR-10": (
        "cifar10_resnet.py:width=0.125",
        {"optimizer.learning_rate": "0.000001"},
    ),
    "static, ImageNet sample": ("cifar10_tiny.py:wiring=static,edges=dnw", _PHOTOGRAPHS),
}
CASES = tuple(case for case in _CASES if case != SMALL)  # on real images


def flags(
    case: str, workdir: Path | None = None, data_dir: Path | str = "", **overrides: str
) -> list[str]:
    """Returns the command line of a case.

    Args:
      case: of `CASES`, or `SMALL`.
      workdir: of the run; without one the caller adds it.
      data_dir: with the data sets of TFDS; without one the caller adds it, or none is needed.
      **overrides: fields of the config with "__" instead of ".".
    """
    config, fields = _CASES[case]
    fields = _COMMON | {"optimizer.learning_rate": "0.0005"} | fields
    fields |= {"dataset.data_dir": str(data_dir)} if data_dir else {}
    fields |= {name.replace("__", "."): text for name, text in overrides.items()}
    return [
        f"--config={ROOT / 'configs' / config}",
        *([f"--workdir={workdir}"] if workdir else []),
        *(f"--config.{name}={text}" for name, text in fields.items()),
    ]
