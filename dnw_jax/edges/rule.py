"""The interface of a rule, which chooses the real edges among all possible ones.

A rule is a small frozen dataclass without arrays. What it must remember between updates (the mask
of a random graph, for example) is an explicit state: `init` returns it, every other method takes
it, and the training loop keeps it next to the parameters. The state is one array, or None for a
rule that remembers nothing. It is never trained.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import Sparsity, check_fraction
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.straight_through import straight_through

State = Array | None  # what a rule remembers of one layer; None for a rule without a state


@dataclass(frozen=True)
class Rule:
    """The base class of all rules; a subclass overrides only the methods in which it differs.

    As it stands, the rule has no state, chooses the `num_edges` largest weights at every call, and
    lets only the chosen weights learn. This rule keeps the weights that moved most since the start:

        @dataclasses.dataclass(frozen=True)
        class LargestChange(Rule):
            every_edge_learns = True

            def init(self, key, weights, num_edges, forbidden=None):
                return weights  # the state: the initial weights

            def mask(self, weights, state, num_edges):
                return edge_mask(weights - state, num_edges)

        sparsifier = dnw_jax.sparsify(params, sparsity=0.9, rule=LargestChange())

    `sparsify` reads the attributes to refuse settings that the rule cannot follow. All are False
    unless the subclass sets them.

    Attributes:
      draws_wiring: whether `init` draws random numbers and needs a key.
      every_edge_learns: whether the gradient also reaches the edges that are not real.
      mask_is_fixed: whether `init` chooses the mask, which then stays. Such a rule cannot follow a
        `SparsitySchedule`.
      fixes_sparsity: whether the rule itself determines how many edges are real, as n:m does. It
        then overrides `checked_sparsity`, and takes neither a schedule nor a budget.
    """

    draws_wiring: ClassVar[bool] = False
    every_edge_learns: ClassVar[bool] = False
    mask_is_fixed: ClassVar[bool] = False
    fixes_sparsity: ClassVar[bool] = False

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
        """Returns why weights of this path and shape do not fit the rule, or None if they fit.

        `sparsify` and the sparse layers call it once, before `init`, and raise a ValueError with
        the reason.

        Args:
          path: path of the leaf, such as "encoder/kernel"; empty for a sparse layer.
          shape: shape of the weights.

        Returns:
          The reason as the end of a sentence, such as "shape (12,) has no axis of inputs", or None.
        """
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

        Returns:
          One array of any shape and dtype, or None for a rule that remembers nothing.
        """
        del key, weights, num_edges, forbidden
        return None

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns which edges are real now.

        Args:
          weights: weights of all possible edges.
          state: what `init` or `advance_state` returned last.
          num_edges: how many edges are to be real; traced under a `SparsitySchedule` and for the
            budget "global".

        Returns:
          A mask in the shape of `weights`, True for the real edges.
        """
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
        """Returns the state for the next update; by default the state does not change.

        `dnw_jax.train` calls it before each update, and `Sparsifier.apply` where it is given
        `progress`. It is traced by `jax.jit`, so the new state must have the shape and dtype of
        `state`.

        Args:
          weights: weights of all possible edges, before the update.
          state: the state so far.
          num_edges: how many edges are to be real.
          progress: the part of the run, in (0, 1], that is done after the update.

        Returns:
          The new state, an array, or None if the rule has no state.
        """
        del weights, num_edges, progress
        return state

    def adopt_weights(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> State:
        """Returns the state for a run that starts from the trained weights of another run.

        It is called once, before the first update. By default the state does not change. A rule
        whose `init` looks at the weights must choose again here.

        Args:
          weights: the trained weights of all possible edges.
          state: the state that `init` returned for the weights that these replaced.
          num_edges: how many edges are to be real.

        Returns:
          The new state, an array, or None if the rule has no state.
        """
        del weights, num_edges
        return state

    def penalty(self, weights: Float[Array, "*shape"]) -> Float[Array, ""] | float:
        """Returns the term that the rule adds to the loss.

        Only `dnw_jax.train` can add it; `sparsify` refuses a rule that overrides this method.
        """
        del weights
        return 0.0


def checked_state(rule: Rule, state: Any) -> State:
    """Returns the `state` that a method of `rule` returned.

    Raises:
      ValueError: it is neither an array nor None.
    """
    if state is None or isinstance(state, jax.Array):
        return state
    if isinstance(state, np.ndarray):
        return jnp.asarray(state)
    raise ValueError(
        f"the state of {rule} is a {type(state).__name__}; it must be one array "
        "or None: put several arrays into one with jnp.stack or jnp.concatenate"
    )


def zero_unless(
    mask: Bool[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns `weights` where `mask` is True and zero elsewhere; only the former get a gradient."""
    return jnp.where(mask, weights, jnp.zeros_like(weights))
