"""How many edges are real: in one layer, in several layers, and over a growing sparsity."""

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sparsity = float | int  # fraction of the weights that is zero, in [0, 1]
Shapes = Mapping[str, tuple[int, ...]]  # shapes of the sparse leaves, by path
Counts = dict[str, int]  # edges kept in each sparse leaf, by path


def edge_budget(size: int, sparsity: Sparsity) -> int:
    """Returns the number of edges kept among `size`: `size - int(sparsity * size)`.

    The number of dropped edges is truncated, so the number of kept edges is rounded up. The
    published code counts in the same way (its "prune rate" is this sparsity).

    Args:
      size: number of possible edges, at least 0.
      sparsity: fraction of the edges to drop, in [0, 1].

    Raises:
      ValueError: `size` is negative, or `sparsity` is no number in [0, 1].
    """
    if size < 0:
        raise ValueError(f"size is {size}; it must be at least 0")
    check_fraction(sparsity, "sparsity")
    return size - int(float(sparsity) * size)


def check_fraction(value: Sparsity, field: str) -> None:
    """Raises ValueError, which names the `field`, unless `value` is a number in [0, 1]."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise ValueError(f"{field} is {value!r}; it must be a number in [0, 1]")


def uniform(shapes: Shapes, sparsity: Sparsity) -> Counts:
    """Gives every leaf the same sparsity, rounded by `edge_budget` (Table 4 of the paper)."""
    return {path: edge_budget(math.prod(shape), sparsity) for path, shape in shapes.items()}


def erdos_renyi_kernel(shapes: Shapes, sparsity: Sparsity) -> Counts:
    """Keeps a density proportional to sum(shape) / prod(shape): small leaves are denser.

    The counts add up to `edge_budget` of all weights together. A leaf that would need more weights
    than it has is full. Source: Erdos-Renyi-Kernel of Evci et al. 2020 (RigL, arXiv 1911.11134,
    section 3).
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    total = edge_budget(sum(sizes.values()), sparsity)
    full: set[str] = set()
    while True:  # until no further leaf is full; the others divide what the full ones leave
        rest = [path for path in shapes if path not in full]
        remaining = total - sum(sizes[path] for path in full)
        scale = Fraction(remaining, max(1, sum(sum(shapes[path]) for path in rest)))
        overflowing = {path for path in rest if scale * sum(shapes[path]) > sizes[path]}
        if not overflowing:
            break
        full |= overflowing
    ideal = {
        path: Fraction(size) if path in full else scale * sum(shapes[path])
        for path, size in sizes.items()
    }
    return _rounded(ideal, sizes, total)


def explicit(shapes: Shapes, sparsities: Mapping[str, Sparsity]) -> Counts:
    """Gives each leaf the sparsity that is listed for it; the total is rounded once."""
    for path, sparsity in sparsities.items():
        check_fraction(sparsity, f"sparsity of {path}")
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    dropped = math.fsum(sparsities[path] * size for path, size in sizes.items())
    ideal = {path: size * (1 - Fraction(float(sparsities[path]))) for path, size in sizes.items()}
    return _rounded(ideal, sizes, sum(sizes.values()) - int(dropped))


def _rounded(ideal: Mapping[str, Fraction], sizes: Mapping[str, int], total: int) -> Counts:
    """Rounds `ideal` to whole numbers that add up to `total`: largest remainder first."""
    counts = {path: math.floor(count) for path, count in ideal.items()}
    by_remainder = sorted(ideal, key=lambda path: counts[path] - ideal[path])  # stable
    fitting = [path for path in by_remainder if counts[path] < sizes[path]]
    for path in fitting[: total - sum(counts.values())]:
        counts[path] += 1
    return counts


@dataclass(frozen=True)
class SparsitySchedule:
    """A sparsity that grows from `initial` to `final` while a network trains.

    After t updates the sparsity is

        final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power

    It is `initial` before update `begin` and `final` from update `end` on. At both ends the numbers
    of edges are exact; in between the number of each leaf is rounded by itself. Source: Zhu and
    Gupta 2017 (arXiv 1710.01878, equation 1), where power is 3.

    Attributes:
      final: sparsity at the end, in [0, 1].
      end: number of updates after which the sparsity is `final`.
      begin: number of updates after which the sparsity starts to grow.
      initial: sparsity at the start, in [0, 1].
      power: 3 for the published polynomial, 1 for a linear schedule.

    Raises:
      ValueError: a sparsity is outside [0, 1], `end` <= `begin`, `begin` < 0, or `power` <= 0.
    """

    final: Sparsity
    end: int
    begin: int = 0
    initial: Sparsity = 0.0
    power: float | int = 3.0

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            check_fraction(getattr(self, name), name)
        if not 0 <= self.begin < self.end:
            raise ValueError(f"begin, end are {self.begin}, {self.end}; they need 0 <= begin < end")
        if not self.power > 0:
            raise ValueError(f"power is {self.power}; it must be above 0")

    def remaining(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Returns the fraction of the way to `final` that is still to go after `step`."""
        done = (jnp.asarray(step, jnp.float32) - self.begin) / (self.end - self.begin)
        return (1 - jnp.clip(done, 0, 1)) ** self.power


def annealed_budget(
    first: int, last: Int[Array, ""] | int, remaining: Float[Array, ""] | float
) -> Int[Array, ""]:
    """Returns the number of edges with the fraction `remaining` of the way to `last` still to go.

    The way begins at `first`. The result is exactly `last` when `remaining` is 0 or less, although
    float32 cannot represent every number above 2**24: only the difference to `last` is computed in
    float32.
    """
    more = jnp.round((first - last) * jnp.maximum(remaining, 0)).astype(jnp.int32)
    return last + more
