"""Rules that keep equally many edges in each column or group: patterns that hardware can use."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dnw_jax.edges.budget import Share
from dnw_jax.edges.rule import Rule, State
from dnw_jax.edges.select import edge_mask, magnitude_bits


@dataclass(frozen=True)
class _Structured(Rule):
    """The edges of `mask` are real and every edge learns, as under DNW."""

    every_edge_learns: ClassVar[bool] = True

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Of Flax's attention, whose kernels have heads between inputs and outputs, or None."""
        folder = path.split("/")[-2:-1]
        if len(shape) == 3 and folder in (["query"], ["key"], ["value"], ["out"]):
            return f"of the axes of an attention kernel {shape} several are inputs or outputs"
        return None


@dataclass(frozen=True)
class ConstantFanIn(_Structured):
    """The same number of edges into every target, the largest of each; every edge learns.

    Which is the budget split evenly, rounded up for each target.

    Attributes:
      target_axis: where the targets lie: last in Flax's kernels, 0 in Equinox's and PyTorch's.
    """

    target_axis: int = -1

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """The top edges of each target."""
        del state
        targets_last = jnp.moveaxis(weights, self.target_axis, -1)
        return jnp.moveaxis(top_of_each_target(targets_last, num_edges), -1, self.target_axis)


def top_of_each_target(
    weights: Float[Array, "*sources targets"], num_edges: Int[Array, ""] | int
) -> Bool[Array, "*sources targets"]:
    """The largest weights of each target: `num_edges` shared out evenly, rounded up for each."""
    num_targets = weights.shape[-1]
    columns = weights.reshape(-1, num_targets)
    # A budget of the whole that was rounded up gives n - floor(n * sparsity) of n sources.
    kept = jnp.asarray(-(-num_edges // num_targets))
    mask = jax.vmap(edge_mask, in_axes=(1, None), out_axes=1)(columns, kept)
    return mask.reshape(weights.shape)


@dataclass(frozen=True)
class NOfM(_Structured):
    """The `n` largest of every `m` weights that follow each other along an axis; every edge learns.

    2:4 is what NVIDIA's sparse tensor cores run (Mishra et al. 2021, arXiv 2104.08378). Equal
    magnitudes: the first of the group.

    Attributes:
      n: edges kept in each group.
      m: weights in each group; the axis must be a multiple of it.
      axis: along which the groups lie: the inputs, last but one in Flax's kernels.
    """

    n: int = 2
    m: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"n:m is {self.n}:{self.m}; it needs 1 <= n <= m, such as 2:4")

    def checked_sparsity(self, sparsity: Share | None) -> Share:
        """1 - n / m, which the pattern fixes; ValueError where another one was asked for."""
        own = 1 - self.n / self.m
        if sparsity is not None and sparsity != own:
            raise ValueError(
                f"sparsity is {sparsity}; {self.n}:{self.m} fixes it at {own}: leave it out"
            )
        return own

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Why these weights cannot be grouped, or None."""
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
        """The top `n` of each group, whatever `num_edges` is."""
        del state, num_edges
        if problem := self.refuses("", weights.shape):
            raise ValueError(f"{self.n}:{self.m} does not fit: {problem}")
        last = jnp.moveaxis(weights, self.axis, -1)
        groups = magnitude_bits(last).reshape(*last.shape[:-1], -1, self.m)
        mine, other = groups[..., :, None], groups[..., None, :]
        earlier = jnp.tri(self.m, k=-1, dtype=bool)
        rank = jnp.sum((other > mine) | ((other == mine) & earlier), -1)
        return jnp.moveaxis((rank < self.n).reshape(last.shape), -1, self.axis)
