"""The runs that are compared: small enough for eight devices made of two cores."""

from pathlib import Path

from experiments.hosts.launch import ROOT

# 20 steps with a row of metrics every 5. The learning rates are small enough that rounding moves no
# weight across the threshold of the real edges: a flipped edge is a real difference.
_COMMON = {
    "num_steps": "20",
    "log.every_steps": "5",
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
_CASES: dict[str, tuple[str, dict[str, str]]] = {
    "static, CIFAR-10": ("cifar10_tiny.py:wiring=static,edges=dnw", {}),
    "MobileNetV1-like, CIFAR-10": ("cifar10_mbv1.py", {"model.width": "0.125"}),
    "sparse ResNet-18, CIFAR-10": ("cifar10_resnet.py:width=0.125", {}),
    "static, ImageNet sample": ("cifar10_tiny.py:wiring=static,edges=dnw", _PHOTOGRAPHS),
}
CASES = tuple(_CASES)


def flags(case: str, workdir: Path, data_dir: Path | str, **overrides: str) -> list[str]:
    """Returns the command line of a case; `overrides` are fields with "__" instead of "."."""
    config, fields = _CASES[case]
    fields = (
        _COMMON | {"optimizer.learning_rate": "0.0005", "dataset.data_dir": str(data_dir)} | fields
    )
    fields |= {name.replace("__", "."): text for name, text in overrides.items()}
    return [
        f"--config={ROOT / 'configs' / config}",
        f"--workdir={workdir}",
        *(f"--config.{name}={text}" for name, text in fields.items()),
    ]
