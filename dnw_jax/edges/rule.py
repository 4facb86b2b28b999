"""What every rule that chooses a wiring can be asked: one call signature, explicit state.

`rule.init` gives the state that a rule keeps (the fixed mask of a random graph; nothing for most),
which is never trained. `rule.mask` tells which edges are real. Calling the rule gives the
weights that carry signal in this forward pass, with the rule's own gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import Share, check_fraction
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.straight_through import straight_through

State = Array | None  # most rules keep none


@dataclass(frozen=True)
class Rule:
    """What the rules share; each replaces only what differs.

    No state; the top k edges are real, chosen anew at each call; only real edges learn.

    Attributes:
      draws_wiring: whether `init` draws random numbers: then it needs a key.
      every_edge_learns: whether the cotangent passes to edges that are not real, too.
    """

    draws_wiring: ClassVar[bool] = False
    every_edge_learns: ClassVar[bool] = False

    def checked_sparsity(self, sparsity: Share | None) -> Share:
        """The sparsity that a user asked for; ValueError where it is none, or none was given."""
        if sparsity is None:
            raise ValueError(
                "sparsity is None; give the share of the weights to leave out, such as 0.9"
            )
        check_fraction(sparsity, "sparsity")
        return sparsity

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Why weights of this path and shape do not fit the rule, or None if they do."""
        del path, shape
        return None

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> State:
        """State for a new layer. Edges marked in `forbidden` are never drawn at random."""
        del key, weights, num_edges, forbidden
        return None

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """The real edges; `num_edges` as in `edge_mask`."""
        del state
        return edge_mask(weights, num_edges)

    def __call__(
        self,
        weights: Float[Array, "*shape"],
        state: State,
        num_edges: Int[Array, ""] | int,
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*shape"]:
        """The weights that carry signal; `key` is needed only where training draws numbers."""
        del train, key
        mask = self.mask(weights, state, num_edges)
        return straight_through(weights, mask) if self.every_edge_learns else only(mask, weights)

    def advanced(
        self, state: State, size: int, num_edges: int, progress: Float[Array, ""]
    ) -> State:
        """The state for an update at `progress` in (0, 1] of the run; `size`: edges possible."""
        del size, num_edges, progress
        return state

    def adopted(self, weights: Float[Array, "*shape"], state: State, num_edges: int) -> State:
        """The state for a run that starts from another run's trained `weights`."""
        del weights, num_edges
        return state

    def penalty(self, weights: Float[Array, "*shape"]) -> Float[Array, ""] | float:
        """What is added to the loss."""
        del weights
        return 0.0


def only(mask: Bool[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`weights` where `mask`, zero elsewhere; gradient to the former alone."""
    return jnp.where(mask, weights, jnp.zeros_like(weights))
