"""A worker: the five graphs by sorting, in PyTorch. A script by itself, for another interpreter."""

import sys
import time

SHAPES = ((32, 64), (192, 256), (384, 512), (2816, 3072), (1536, 2048))
BUDGETS = (104, 1245, 4977, 72991, 79627)


def main() -> None:
    """Serves selections until killed; the protocol is that of `alternate.serve`."""
    import torch  # noqa: PLC0415

    weights = [(2 * torch.rand(shape) - 1) / shape[0] ** 0.5 for shape in SHAPES]
    for _ in sys.stdin:
        start = time.perf_counter()
        for weight, num_edges in zip(weights, BUDGETS, strict=True):
            kept = weight.clone()
            _, order = weight.flatten().abs().sort()
            kept.view(-1)[order[: weight.numel() - num_edges]] = 0
        print(f"seconds {time.perf_counter() - start}", flush=True)


if __name__ == "__main__":
    main()
