"""A worker: steps of the published code. Arguments: its checkout, case, mode, batch size.

Runs in an interpreter with torch, and imports no dnw_jax. If the mode is the path of an .npz
file, it writes its initial weights, images and labels there and ends.
"""

import contextlib
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[2]))
from experiments.benchmarks.alternate import serve
from experiments.benchmarks.cases import CASES

_MODELS = {
    "static": "neuralgraph:StaticNeuralGraph",
    "discrete": "neuralgraph:DiscreteTimeNeuralGraph",
    "continuous": "neuralgraph:ContinuousTimeNeuralGraph",
    "mbv1_cifar": "mobilenetv1like:MobileNetV1Like",
    "mbv1_imagenet": "mobilenetv1like:MobileNetV1Like",
}


def main(checkout: str, name: str, mode: str, batch_size: str) -> None:
    """Serves steps until killed."""
    case, batch = CASES[name], int(batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    # JAX computes with TF32 on a GPU, too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    build = _graph if name in _MODELS else _resnet
    with contextlib.redirect_stdout(sys.stderr):  # the published code prints settings and layers
        model = build(checkout, name, device).to(device).train(mode != "evaluate")
    # With a learning rate of 0 the weights stay, so each turn does the same work. The update takes
    # as long as with another rate.
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, weight_decay=1e-4)
    image = torch.randn(batch, 3, case.image_size, case.image_size, device=device)
    label = torch.randint(case.num_classes, (batch,), device=device)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(image), label)

    def train() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    def evaluate() -> float:
        with torch.no_grad():
            return loss().item()

    if mode.endswith(".npz"):
        _save_start(mode, model, image, label)
    else:
        serve(evaluate if mode == "evaluate" else train)


def _save_start(
    file: str, model: torch.nn.Module, image: torch.Tensor, label: torch.Tensor
) -> None:
    weights = {f"weights/{name}": array for name, array in model.state_dict().items()}
    arrays = {"image": image.permute(0, 2, 3, 1), "label": label, **weights}
    np.savez(file, **{name: array.numpy(force=True) for name, array in arrays.items()})


def _graph(checkout: str, name: str, device: torch.device) -> torch.nn.Module:
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv = [
        sys.argv[0],
        f"app:apps/{CASES[name].reference}",
    ]  # the published code reads its settings from here
    from genutil.config import FLAGS  # noqa: PLC0415

    FLAGS.device = device
    module, model = _MODELS[name].split(":")
    return getattr(importlib.import_module(f"models.graphs.{module}"), model)()


def _resnet(checkout: str, name: str, device: torch.device) -> torch.nn.Module:
    del device
    # The package's __init__ imports data loaders that need more than torch; this replaces it.
    package = ModuleType("image_classification")
    folder = Path(checkout, "imagenet_sparsity_experiments", package.__name__)
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    resnet = importlib.import_module("image_classification.resnet")
    return resnet.build_resnet(*CASES[name].reference.split())


if __name__ == "__main__":
    main(*sys.argv[1:])
