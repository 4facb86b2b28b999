"""What a sparse ResNet costs, convolution by convolution: edges whose signal reaches an output."""

import numpy as np
from jaxtyping import Bool

from dnw_jax.deploy.row import Row, size_after
from dnw_jax.graphs.sparse_layer import SparseConv
from dnw_jax.models.resnet import Block, ResNet

Channels = Bool[np.ndarray, " channels"]


def resnet_rows(model: ResNet, image_size: int) -> list[Row]:
    """A row for each convolution and its norm, from the first to the last layer."""
    size = size_after(image_size, 1 if model.small_images else 2)
    sizes = [(size, size_after(size, 1 if model.small_images else 2))]  # of conv1, after pooling
    blocks = []
    for layer in range(1, 5):
        for index in range(getattr(model, f"layer{layer}").num_blocks):
            name = f"layer{layer}.{index}"
            block: Block = getattr(getattr(model, f"layer{layer}"), str(index))
            before = sizes[-1][-1]
            sizes.append((before, size_after(before, block.stride)))
            blocks.append((name, block))
    head, needed = _row("fc", model.fc, 1, np.ones(model.fc.out_features, bool), norm=False)
    rows = [head]
    for (name, block), (before, after) in zip(blocks[::-1], sizes[:0:-1], strict=True):
        new, needed = _block_rows(name, block, before, after, needed)
        rows = new + rows
    stem, _ = _row("conv1", model.conv1, sizes[0][0], needed)
    return [stem, *rows]


def _block_rows(
    name: str, block: Block, before: int, after: int, needed: Channels
) -> tuple[list[Row], Channels]:
    """The rows of a block whose outputs are `needed`, and which of its inputs it needs."""
    rows: list[Row] = []
    inner, size = needed, after
    for index in range(block.num_layers, 0, -1):
        convolution: SparseConv = getattr(block, f"conv{index}")
        row, inner = _row(f"{name}.conv{index}", convolution, size, inner)
        rows.insert(0, row)
        if convolution.strides != 1:
            size = before
    shortcut = needed
    if block.downsample is not None:
        convolution = getattr(block.downsample, "0")
        row, shortcut = _row(f"{name}.downsample", convolution, after, needed)
        rows.append(row)
    return rows, inner | shortcut


def _row(
    name: str, convolution: SparseConv, size: int, needed: Channels, norm: bool = True
) -> tuple[Row, Channels]:
    """The row of a convolution whose outputs are `needed`, and which inputs it listens to."""
    edges = np.asarray(convolution.real_edges()) & needed
    count, inputs = int(edges.sum()), np.any(edges, axis=(0, 1, 3))
    row = Row(
        name,
        params=count + (2 * int(needed.sum()) if norm else 0),
        macs=count * size**2,
        nodes=len(inputs),
        live_nodes=int(inputs.sum()),
        dead_inputs=int((~inputs).sum()),
        edges=count,
    )
    return row, inputs
