"""Layers that hold a weight for every possible edge, and a rule that makes some of them real."""

import copy
from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import RULES, Rule, State, edge_budget, find_rule
from dnw_jax.edges.budget import Share


class RuleState(nnx.Variable):
    """What a rule keeps between steps (the mask of a random graph): saved, never trained."""


class SparseLayer(nnx.Module):
    """What all layers that choose edges can be asked.

    Attributes:
      rule: which edges are real, and which of them learn.
      sparsity: the share of edges that are not real.
      num_edges: how many are: the budget.
      state: the rule's state, or None.
    """

    rule: Rule
    sparsity: Share
    num_edges: int
    state: RuleState | None
    kernel: nnx.Param

    @property
    def weights(self) -> Float[Array, "*shape"]:
        """Of every possible edge, targets along the last axis."""
        return self.kernel[...]

    def real_edges(self) -> Bool[Array, "*shape"]:
        """Marks the edges that are real now."""
        return self.rule.mask(self.weights, self._state(), self.num_edges)

    def real_weights(
        self, *, train: bool = False, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*shape"]:
        """The weights that carry signal now, chosen in full precision."""
        return self.rule(self.weights, self._state(), self.num_edges, train=train, key=key)

    def freeze_edges(self) -> None:
        """Keeps the weights that carry signal now, and chooses no more: all others are zero."""
        self._replace(self.real_weights())
        self.rule = RULES["complete"]
        self._keep(None)

    def advance(self, progress: Float[Array, ""]) -> None:
        """Tells the rule at which part of the run, in (0, 1], the next update is."""
        self._keep(self.rule.advanced(self._state(), self.weights.size, self.num_edges, progress))

    def adopt(self) -> None:
        """Tells the rule that the weights were replaced by another run's."""
        self._keep(self.rule.adopted(self.weights, self._state(), self.num_edges))

    def penalty(self) -> Float[Array, ""] | float:
        """What the rule adds to the loss."""
        return self.rule.penalty(self.weights)

    def choose(
        self,
        sparsity: Share,
        rule: Rule,
        key: Key[Array, ""] | None,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> None:
        """Begins to choose edges among the weights, which exist already."""
        if problem := rule.refuses("", self.weights.shape):
            raise ValueError(f"{rule} does not fit: {problem}")
        self.rule = rule
        self.sparsity = sparsity
        self.num_edges = edge_budget(self.weights.size, sparsity)
        self._keep(rule.init(key, self.weights, self.num_edges, forbidden))

    def _choose_by_name(self, sparsity: Share | None, rule: str | Rule, rngs: nnx.Rngs) -> None:
        rule = find_rule(rule)
        # A key only where one is needed: the weights of a seed are those of Flax's own layers.
        key = None
        if rule.draws_wiring:
            key = rngs.edges() if {"edges", "default"} & set(rngs) else rngs.params()
        self.choose(rule.checked_sparsity(sparsity), rule, key)

    def _with_real_weights(self, train: bool, key: Key[Array, ""] | None) -> Any:
        """A passing copy whose kernel is what carries signal: the rest of a layer is Flax's."""
        layer = copy.copy(self)
        layer.kernel = nnx.Param(self.real_weights(train=train, key=key))
        return layer

    def _replace(self, weights: Float[Array, "*shape"]) -> None:
        self.kernel = nnx.Param(weights)

    def _state(self) -> State:
        return None if self.state is None else self.state[...]

    def _keep(self, state: State) -> None:
        # A new variable: assigning to the old one is spelt differently in Flax 0.11 and 0.12.
        self.state = None if state is None else RuleState(state)


class SparseLinear(SparseLayer, nnx.Linear):
    """`flax.nnx.Linear` whose kernel [inputs, outputs] is sparse while it trains.

    Args:
      sparsity: share of the kernel that is zero in the forward pass; needed by every rule but N:M.
      rule: the name of one of `dnw_jax.edges.RULES`, "n:m" such as "2:4", or a `Rule`.
        For `fine_tune` and `lottery_ticket` put in trained weights, then call `adopt`.
      options: those of `flax.nnx.Linear`; the bias, if there is one, is dense.

    Raises:
      ValueError: no such rule, a sparsity outside [0, 1], or a kernel that does not fit the rule.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sparsity: Share | None = None,
        rule: str | Rule = "dnw",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(in_features, out_features, rngs=rngs, **options)
        self._choose_by_name(sparsity, rule, rngs)

    def __call__(  # type: ignore[override]
        self,
        inputs: Float[Array, "*batch inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """The linear map by the real weights; `key` where the rule draws in training."""
        return nnx.Linear.__call__(self._with_real_weights(train, key), inputs)


class SparseConv(SparseLayer, nnx.Conv):
    """`flax.nnx.Conv` whose kernel [*window, inputs, outputs] is sparse while it trains.

    Args:
      sparsity: share of the kernel that is zero in the forward pass; needed by every rule but N:M.
      rule: the name of one of `dnw_jax.edges.RULES`, "n:m" such as "2:4", or a `Rule`.
        For `fine_tune` and `lottery_ticket` put in trained weights, then call `adopt`.
      options: those of `flax.nnx.Conv` but `mask`; the bias, if there is one, is dense.

    Raises:
      ValueError: no such rule, a sparsity outside [0, 1], or a kernel that does not fit the rule.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        sparsity: Share | None = None,
        rule: str | Rule = "dnw",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if options.get("mask") is not None:
            raise ValueError("mask is given; a SparseConv chooses its own: leave it out")
        super().__init__(in_features, out_features, kernel_size, rngs=rngs, **options)
        self._choose_by_name(sparsity, rule, rngs)

    def __call__(  # type: ignore[override]
        self,
        inputs: Float[Array, "*batch_and_size inputs"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*batch_and_out_size outputs"]:
        """The convolution by the real weights; `key` where the rule draws in training."""
        return nnx.Conv.__call__(self._with_real_weights(train, key), inputs)
