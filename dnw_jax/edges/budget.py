"""How many edges are real."""


def edge_budget(size: int, sparsity: float) -> int:
    """Number of edges kept among `size` at `sparsity` in [0, 1]: `size - int(sparsity * size)`.

    Counted as the published code counts (its prune rate is our sparsity): the number of *dropped*
    edges is truncated, so the budget is rounded up. Raises ValueError for a negative size or a
    sparsity outside [0, 1].
    """
    if size < 0:
        raise ValueError(f"size is {size}; it must be at least 0")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1]")
    return size - int(sparsity * size)
