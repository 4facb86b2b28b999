"""The rules of the paper (Table 3): one small subclass of `rule.Rule` for each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import annealed_budget
from dnw_jax.edges.rule import Rule, State, zero_unless
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.structured import ConstantFanIn, NOfM, top_of_each_target


@dataclass(frozen=True)
class DNW(Rule):
    """Discovering Neural Wirings: the top k edges are real and every edge learns (section 2)."""

    every_edge_learns: ClassVar[bool] = True


@dataclass(frozen=True)
class NoUpdate(Rule):
    """The top k edges are real and only they learn: DNW without its update rule (Table 3)."""


@dataclass(frozen=True)
class FixedMask(Rule):
    """The state is a mask that is chosen once. Only the edges in it learn."""

    mask_is_fixed: ClassVar[bool] = True

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns the mask chosen at the start, whatever the weights are now."""
        del weights, num_edges
        assert state is not None
        return state


@dataclass(frozen=True)
class Random(FixedMask):
    """A random graph: its mask is drawn once."""

    draws_wiring: ClassVar[bool] = True

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Bool[Array, "*shape"]:
        """Draws `num_edges` of the edges that are not `forbidden`, uniformly.

        If fewer than `num_edges` are allowed, all of them are drawn.
        """
        if key is None:
            raise ValueError("key is None; a random wiring is drawn with a key: pass key=...")
        draws = jax.random.uniform(key, weights.shape)
        if forbidden is None:
            return edge_mask(draws, num_edges)
        return edge_mask(jnp.where(forbidden, 0, draws), num_edges) & ~forbidden


@dataclass(frozen=True)
class FineTune(FixedMask):
    """The top k edges of a trained complete graph, chosen once. Only they learn.

    Fine-tuning continues from the trained weights. A lottery ticket (one-shot) uses the same rule:
    it takes the same edges, then returns to the weights that the complete graph had at step 0.
    """

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Bool[Array, "*shape"]:
        """Returns the top k edges of `weights`."""
        del key, forbidden
        return edge_mask(weights, num_edges)

    def adopt_weights(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns the top k edges of the trained `weights`."""
        del state
        return edge_mask(weights, num_edges)


@dataclass(frozen=True)
class TargetedDropout(Rule):
    """Training drops each edge outside the top k with probability `rho`; evaluation drops all.

    The published code uses |w| for the weights that it keeps. No description of the method does so;
    here the weights keep their sign.

    Attributes:
      rho: probability in [0, 1] of dropping an edge that is not in the top k.
    """

    rho: float = 0.95

    def __call__(
        self,
        weights: Float[Array, "*shape"],
        state: State,
        num_edges: Int[Array, ""] | int,
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*shape"]:
        """Returns the weights that were not dropped; each call in training draws with `key`."""
        real = self.mask(weights, state, num_edges)
        if not train:
            return zero_unless(real, weights)
        if key is None:
            raise ValueError(
                "key is None; targeted dropout draws random numbers in training: pass key=..."
            )
        return zero_unless(real | ~jax.random.bernoulli(key, self.rho, weights.shape), weights)


@dataclass(frozen=True)
class TargetedDropoutPerNode(TargetedDropout):
    """Targeted dropout that keeps equally many edges into each node ("regular").

    The targets lie along the last axis. Each target keeps n - floor(n * sparsity) of its n sources.
    This is rounded up for each target, so the sum can exceed the budget of the whole graph.
    """

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns the top edges of each target."""
        del state
        return top_of_each_target(weights, num_edges)


@dataclass(frozen=True)
class L1Anneal(Rule):
    """The top edges learn under an L1 penalty, and their number is annealed from all to k.

    The state is the current number of edges. The paper gives neither the penalty nor the schedule;
    here the number falls linearly over the first part of the run.

    Attributes:
      l1: factor of the sum of |w| over all edges, which is added to the loss.
      anneal: part of the run, in (0, 1], after which the number of edges is k.
    """

    l1: float = 1e-5
    anneal: float = 0.5

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Int[Array, ""]:
        """Returns the number of all edges."""
        del key, num_edges, forbidden
        return jnp.int32(weights.size)

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns as many of the top edges as the state says."""
        del num_edges
        assert state is not None
        return edge_mask(weights, state)

    def advance_state(
        self,
        weights: Float[Array, "*shape"],
        state: State,
        num_edges: Int[Array, ""] | int,
        progress: Float[Array, ""] | float,
    ) -> Int[Array, ""]:
        """Returns the number of edges at `progress`."""
        del state
        return annealed_budget(weights.size, num_edges, 1 - progress / self.anneal)

    def penalty(self, weights: Float[Array, "*shape"]) -> Float[Array, ""]:
        """Returns `l1` times the sum of |w|."""
        return self.l1 * jnp.sum(jnp.abs(weights))


@dataclass(frozen=True)
class Complete(Rule):
    """Every edge is real and learns."""

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """Returns all edges."""
        del state, num_edges
        return jnp.ones(weights.shape, bool)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "dnw": DNW(),
        "random": Random(),
        "complete": Complete(),
        "dnw_no_update": NoUpdate(),
        "targeted_dropout": TargetedDropout(),
        "targeted_dropout_per_node": TargetedDropoutPerNode(),
        "fine_tune": FineTune(),
        "lottery_ticket": FineTune(),
        "l1_anneal": L1Anneal(),
        "constant_fan_in": ConstantFanIn(),
    }
)
"""The rules by the name that `config.model.edges` gives them."""


def find_rule(rule: str | Rule) -> Rule:
    """Returns the rule of this name in `RULES`, or `NOfM(n, m)` for "n:m"; a `Rule` as it is.

    Raises:
      ValueError: `rule` is neither such a name nor a `Rule`.
    """
    if isinstance(rule, Rule):
        return rule
    allowed = f'it must be one of {", ".join(RULES)}, n:m such as "2:4", or an object of class Rule'
    if not isinstance(rule, str):
        raise ValueError(f"rule is {rule!r}; {allowed}")
    if pattern := re.fullmatch(r"(\d+):(\d+)", rule):
        return NOfM(int(pattern[1]), int(pattern[2]))
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; {allowed}")
    return RULES[rule]
