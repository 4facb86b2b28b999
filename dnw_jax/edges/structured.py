"""Rules that keep equally many edges for each target or group: patterns that hardware can use."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.edges.budget import Sparsity
from dnw_jax.edges.rule import Rule, State
from dnw_jax.edges.select import edge_mask, magnitude_bits


@dataclass(frozen=True)
class _Structured(Rule):
    """The base of rules that keep equally many edges per target or group; every edge learns."""

    every_edge_learns: ClassVar[bool] = True

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Returns why a kernel of Flax's attention does not fit; other kernels do.

        In an attention kernel the heads are an axis of their own, either of inputs or of outputs.
        """
        folder = path.split("/")[-2:-1]
        if len(shape) == 3 and folder in (["query"], ["key"], ["value"], ["out"]):
            return f"several axes of the attention kernel {shape} are inputs or outputs"
        return None


@dataclass(frozen=True)
class ConstantFanIn(_Structured):
    """Keeps the same number of edges into every target, the largest of each; every edge learns.

    The number is the budget divided by the number of targets, rounded up.

    Attributes:
      target_axis: the axis of the targets: the last one in Flax's kernels (-1), the first one in
        those of Equinox and PyTorch (0).
    """

    target_axis: int = -1

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns the top edges of each target."""
        del state
        targets_last = jnp.moveaxis(weights, self.target_axis, -1)
        return jnp.moveaxis(top_of_each_target(targets_last, num_edges), -1, self.target_axis)


def top_of_each_target(
    weights: Float[Array, "*sources targets"], num_edges: Int[Array, ""] | int
) -> Bool[Array, "*sources targets"]:
    """Marks the largest weights of each target: `num_edges` / targets of them, rounded up."""
    num_targets = weights.shape[-1]
    columns = weights.reshape(-1, num_targets)
    # `edge_budget` rounds num_edges up, so this is n - floor(n * sparsity) of each target's n
    # sources.
    kept = jnp.asarray(-(-num_edges // num_targets))
    mask = jax.vmap(edge_mask, in_axes=(1, None), out_axes=1)(columns, kept)
    return mask.reshape(weights.shape)


@dataclass(frozen=True)
class NOfM(_Structured):
    """Keeps the `n` largest of every `m` consecutive weights along an axis; every edge learns.

    Of equal magnitudes in a group the first is kept. NVIDIA's sparse tensor cores run 2:4 (Mishra
    et al. 2021, arXiv 2104.08378).

    Attributes:
      n: edges kept in each group.
      m: weights in each group; the length of the axis must be a multiple of it.
      axis: the axis along which the groups lie: the axis of the inputs, which is the last but one
        in Flax's kernels.
    """

    fixes_sparsity: ClassVar[bool] = True

    n: int = 2
    m: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"n:m is {self.n}:{self.m}; it needs 1 <= n <= m, such as 2:4")

    def checked_sparsity(self, sparsity: Sparsity | None) -> Sparsity:
        """Returns 1 - n / m, the sparsity of the pattern.

        Raises:
          ValueError: the user gave another sparsity.
        """
        fixed = 1 - self.n / self.m
        if sparsity is not None and sparsity != fixed:
            raise ValueError(
                f"sparsity is {sparsity}; {self.n}:{self.m} fixes it at {fixed}: leave it out"
            )
        return fixed

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Returns why weights of this shape cannot be grouped, or None if they can."""
        if problem := super().refuses(path, shape):
            return problem
        if len(shape) < 2:
            return f"shape {shape} has no axis of inputs"
        size = shape[self.axis]
        return (
            None
            if size % self.m == 0
            else f"axis {self.axis} of {shape} is no multiple of {self.m}"
        )

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns the top `n` of each group, whatever `num_edges` is."""
        del state, num_edges
        if problem := self.refuses("", weights.shape):
            raise ValueError(f"{self.n}:{self.m} does not fit: {problem}")
        inputs_last = jnp.moveaxis(weights, self.axis, -1)
        groups = magnitude_bits(inputs_last).reshape(*inputs_last.shape[:-1], -1, self.m)
        magnitude, other = groups[..., :, None], groups[..., None, :]
        is_earlier = jnp.tri(self.m, k=-1, dtype=bool)
        rank = jnp.sum((other > magnitude) | ((other == magnitude) & is_earlier), -1)
        return jnp.moveaxis((rank < self.n).reshape(inputs_last.shape), -1, self.axis)
