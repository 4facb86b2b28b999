"""A worker: selects the edges of the five graphs by a sort in PyTorch. Imports no dnw_jax."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2]))
from experiments.benchmarks.alternate import serve
from experiments.benchmarks.cases import BUDGETS, SHAPES


def main() -> None:
    """Serves selections until killed."""
    weights = [(2 * torch.rand(shape) - 1) / shape[0] ** 0.5 for shape in SHAPES]

    def select() -> None:
        for weight, num_edges in zip(weights, BUDGETS, strict=True):
            kept = weight.clone()
            _, order = weight.flatten().abs().sort()
            kept.view(-1)[order[: weight.numel() - num_edges]] = 0

    serve(select)


if __name__ == "__main__":
    main()
