"""The interface of a rule, which chooses the real edges among all possible ones.

A rule is a small frozen dataclass without arrays. What it must remember between updates (the mask
of a random graph, for example) is an explicit state: `init` returns it, every other method takes
it, and the training loop keeps it next to the parameters. The state is never trained.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import Sparsity, check_fraction
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.straight_through import straight_through

State = Array | None  # what a rule remembers of one layer; None for a rule without a state


@dataclass(frozen=True)
class Rule:
    """The base class of all rules; a subclass overrides only the methods in which it differs.

    As it stands, the rule has no state, chooses the `num_edges` largest weights at every call, and
    lets only the chosen weights learn.

    Attributes:
      draws_wiring: whether `init` draws random numbers and needs a key.
      every_edge_learns: whether the gradient also reaches the edges that are not real.
    """

    draws_wiring: ClassVar[bool] = False
    every_edge_learns: ClassVar[bool] = False

    def checked_sparsity(self, sparsity: Sparsity | None) -> Sparsity:
        """Returns the sparsity to use for the `sparsity` that the user gave.

        Raises:
          ValueError: `sparsity` is None or outside [0, 1].
        """
        if sparsity is None:
            raise ValueError(
                "sparsity is None; give the fraction of the weights to leave out, such as 0.9"
            )
        check_fraction(sparsity, "sparsity")
        return sparsity

    def refuses(self, path: str, shape: tuple[int, ...]) -> str | None:
        """Returns why weights of this path and shape do not fit the rule, or None if they fit."""
        del path, shape
        return None

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> State:
        """Returns the state for a new layer.

        Args:
          key: needed by a rule that draws its wiring.
          weights: initial weights of all possible edges.
          num_edges: how many edges are real.
          forbidden: edges that a random wiring must not contain.
        """
        del key, weights, num_edges, forbidden
        return None

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns True for the real edges; `num_edges` as in `edge_mask`."""
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
        """Returns the weights that carry signal; their gradient follows the rule.

        Args:
          weights: weights of all possible edges.
          state: the state of the rule.
          num_edges: how many edges are real.
          train: whether this is a forward pass of training.
          key: needed by a rule that draws random numbers in training.
        """
        del train, key
        mask = self.mask(weights, state, num_edges)
        if self.every_edge_learns:
            return straight_through(weights, mask)
        return zero_unless(mask, weights)

    def advance_state(
        self,
        weights: Float[Array, "*shape"],
        state: State,
        num_edges: Int[Array, ""] | int,
        progress: Float[Array, ""] | float,
    ) -> State:
        """Returns the state for the update at `progress`, in (0, 1], of the training run."""
        del weights, num_edges, progress
        return state

    def adopt_weights(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> State:
        """Returns the state for a run that starts from the trained `weights` of another run."""
        del weights, num_edges
        return state

    def penalty(self, weights: Float[Array, "*shape"]) -> Float[Array, ""] | float:
        """Returns the term that the rule adds to the loss."""
        del weights
        return 0.0


def zero_unless(
    mask: Bool[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns `weights` where `mask` is True and zero elsewhere; only the former get a gradient."""
    return jnp.where(mask, weights, jnp.zeros_like(weights))
