"""A worker: one step of the published code. Arguments: its checkout, wiring, mode, batch size.

Runs in an interpreter with torch; knows nothing of dnw_jax.
"""

import os
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2]))
from experiments.benchmarks.alternate import serve

_MODELS = {
    "static": ("static_dnw.yml", "StaticNeuralGraph"),
    "discrete": ("discrete_time_dnw.yml", "DiscreteTimeNeuralGraph"),
    "continuous": ("continuous_time_dnw.yml", "ContinuousTimeNeuralGraph"),
}


def main(checkout: str, wiring: str, mode: str, batch_size: str) -> None:
    """Serves steps until killed."""
    settings, model_name = _MODELS[wiring]
    os.chdir(checkout)
    sys.path.insert(0, checkout)
    sys.argv = [sys.argv[0], f"app:apps/small_scale/{settings}"]  # it reads its settings from here
    from genutil.config import FLAGS  # noqa: PLC0415
    from models.graphs import neuralgraph  # noqa: PLC0415

    torch.manual_seed(0)
    FLAGS.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = getattr(neuralgraph, model_name)().to(FLAGS.device).train(mode == "train")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    image = torch.randn(int(batch_size), 3, 32, 32, device=FLAGS.device)
    label = torch.randint(10, (int(batch_size),), device=FLAGS.device)

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

    serve(train if mode == "train" else evaluate)


if __name__ == "__main__":
    main(*sys.argv[1:])
