"""How many edges are real: of one layer, shared out over several, and as training goes on."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Share = float | int  # in [0, 1]
Shapes = Mapping[str, tuple[int, ...]]  # of the weights to be sparse, by path
Counts = dict[str, int]  # edges kept, by path


def edge_budget(size: int, sparsity: Share) -> int:
    """Number of edges kept among `size` at `sparsity` in [0, 1]: `size - int(sparsity * size)`.

    Counted as the published code counts (its prune rate is our sparsity): the number of *dropped*
    edges is truncated, so the budget is rounded up. Raises ValueError for a negative size or a
    sparsity outside [0, 1].
    """
    if size < 0:
        raise ValueError(f"size is {size}; it must be at least 0")
    check_fraction(sparsity, "sparsity")
    return size - int(float(sparsity) * size)


def check_fraction(share: Share, field: str) -> None:
    """Refuses what is no number in [0, 1]."""
    is_number = isinstance(share, numbers.Real) and not isinstance(share, bool)
    if not is_number or not 0 <= share <= 1:
        raise ValueError(f"{field} is {share!r}; it must be a number in [0, 1]")


def uniform(shapes: Shapes, sparsity: Share) -> Counts:
    """Every layer at the same sparsity, each rounded as `edge_budget` (Table 4 of the paper)."""
    return {path: edge_budget(math.prod(shape), sparsity) for path, shape in shapes.items()}


def erdos_renyi_kernel(shapes: Shapes, sparsity: Share) -> Counts:
    """Small layers denser than large ones: a share of sum(shape) / prod(shape), at most all.

    The Erdos-Renyi-Kernel of Evci et al. 2020 (RigL, arXiv 1911.11134, section 3). The total is
    that of one layer of all weights, exactly.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = edge_budget(sum(sizes.values()), sparsity)
    full: set[str] = set()
    while True:  # whatever would need more than all of its weights is full; the rest share anew
        rest = [path for path in shapes if path not in full]
        left = total - sum(sizes[path] for path in full)
        scale = Fraction(left, max(1, sum(sum(shapes[path]) for path in rest)))
        overflowing = {path for path in rest if scale * sum(shapes[path]) > sizes[path]}
        if not overflowing:
            break
        full |= overflowing
    ideal = {
        path: Fraction(size) if path in full else scale * sum(shapes[path])
        for path, size in sizes.items()
    }
    return _rounded(ideal, sizes, total)


def explicit(shapes: Shapes, sparsities: Mapping[str, Share]) -> Counts:
    """Each layer at a sparsity of its own; the total is that of all of them, rounded up once."""
    for path, sparsity in sparsities.items():
        check_fraction(sparsity, f"sparsity of {path}")
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    dropped = math.fsum(sparsities[path] * size for path, size in sizes.items())
    ideal = {path: size * (1 - Fraction(float(sparsities[path]))) for path, size in sizes.items()}
    return _rounded(ideal, sizes, sum(sizes.values()) - int(dropped))


def _rounded(ideal: Mapping[str, Fraction], sizes: Mapping[str, int], total: int) -> Counts:
    """Whole numbers next to `ideal` that add up to `total`: largest remainder first."""
    counts = {path: math.floor(share) for path, share in ideal.items()}
    by_remainder = sorted(ideal, key=lambda path: counts[path] - ideal[path])  # stable
    fitting = [path for path in by_remainder if counts[path] < sizes[path]]
    for path in fitting[: total - sum(counts.values())]:
        counts[path] += 1
    return counts


@dataclass(frozen=True)
class SparsitySchedule:
    """A sparsity that grows while a network trains, and then stays.

    After t updates it is final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power,
    before `begin` initial, from `end` on final. Power 3 is the polynomial of Zhu and Gupta 2017
    (arXiv 1710.01878, equation 1), 1 is linear. Counts are exact at both ends; in between each
    leaf's is rounded by itself.

    Raises:
      ValueError: a sparsity outside [0, 1], end <= begin, begin < 0, or power <= 0.
    """

    final: Share
    end: int
    begin: int = 0
    initial: Share = 0.0
    power: float | int = 3.0

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            check_fraction(getattr(self, name), name)
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin, end are {self.begin}, {self.end}; they need 0 <= begin < end")
        if not self.power > 0:
            raise ValueError(f"power is {self.power}; it must be above 0")

    def ahead(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """How much of the way from initial to final is left at update `step`: 1 .. 0."""
        done = (jnp.asarray(step, jnp.float32) - self.begin) / (self.end - self.begin)
        return (1 - jnp.clip(done, 0, 1)) ** self.power


def annealed_budget(first: int, last: int, ahead: Float[Array, ""] | float) -> Int[Array, ""]:
    """The budget when the part `ahead` of the way from `first` to `last` is left; then `last`."""
    more = jnp.round((first - last) * jnp.maximum(ahead, 0)).astype(jnp.int32)
    return last + more  # exactly `last` at the end, though float32 knows no size above 2**24
