"""The paper's ways to choose a wiring (Table 3), a small dataclass each: see `rule.Rule`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import annealed_budget
from dnw_jax.edges.rule import Rule, State, only
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
    """A mask chosen once: the state. Only its edges learn."""

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """The mask chosen at the start, whatever the weights are now."""
        del weights, num_edges
        assert state is not None
        return state


@dataclass(frozen=True)
class Random(FixedMask):
    """A random graph: a mask drawn once."""

    draws_wiring: ClassVar[bool] = True

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Bool[Array, "*shape"]:
        """Draws `num_edges` edges uniformly of those not `forbidden` (all, if fewer)."""
        if key is None:
            raise ValueError("a random wiring is drawn once: pass key=...")
        lots = jax.random.uniform(key, weights.shape)
        if forbidden is None:
            return edge_mask(lots, num_edges)
        return edge_mask(jnp.where(forbidden, 0, lots), num_edges) & ~forbidden


@dataclass(frozen=True)
class FineTune(FixedMask):
    """The top k edges of a trained complete graph, which go on learning from where they were."""

    def init(
        self,
        key: Key[Array, ""] | None,
        weights: Float[Array, "*shape"],
        num_edges: Int[Array, ""] | int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Bool[Array, "*shape"]:
        """The top k of `weights`."""
        del key, forbidden
        return edge_mask(weights, num_edges)

    def adopted(self, weights: Float[Array, "*shape"], state: State, num_edges: int) -> State:
        """The top k of the trained `weights`."""
        del state
        return edge_mask(weights, num_edges)


@dataclass(frozen=True)
class LotteryTicket(FineTune):
    """The same edges, learning anew from the complete graph's initial weights (one-shot)."""


@dataclass(frozen=True)
class TargetedDropout(Rule):
    """All but the top k are dropped with probability `rho` in training, always in evaluation.

    The published code returns |w|, which no other text of the method has: ours keep their sign.
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
        """The weights that were not dropped; training draws anew at each call, with `key`."""
        real = self.mask(weights, state, num_edges)
        if not train:
            return only(real, weights)
        if key is None:
            raise ValueError("targeted dropout draws random numbers in training: pass key=...")
        return only(real | ~jax.random.bernoulli(key, self.rho, weights.shape), weights)


@dataclass(frozen=True)
class TargetedDropoutPerNode(TargetedDropout):
    """Targeted dropout that keeps equally many edges into each node ("regular").

    The targets lie along the last axis; n - floor(n * sparsity) of each one's n sources are kept,
    which is more than the budget of the whole: rounded up for each target.
    """

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """The top edges of each target."""
        del state
        return top_of_each_target(weights, num_edges)


@dataclass(frozen=True)
class L1Anneal(Rule):
    """The top edges learn under an L1 penalty, their number annealed from all to k.

    The state is the budget now. The paper gives neither the penalty nor the schedule: ours is
    linear over the first part of the run.

    Attributes:
      l1: the penalty on the sum of |w| over all edges.
      anneal: the part of the run, in (0, 1], after which the budget is k.
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
        """All edges."""
        del key, num_edges, forbidden
        return jnp.int32(weights.size)

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """As many of the top edges as the budget now is."""
        del num_edges
        assert state is not None
        return edge_mask(weights, state)

    def advanced(
        self, state: State, size: int, num_edges: int, progress: Float[Array, ""]
    ) -> Int[Array, ""]:
        """The budget at `progress`."""
        del state
        return annealed_budget(size, num_edges, 1 - progress / self.anneal)

    def penalty(self, weights: Float[Array, "*shape"]) -> Float[Array, ""]:
        """`l1` times the sum of |w|."""
        return self.l1 * jnp.sum(jnp.abs(weights))


@dataclass(frozen=True)
class Complete(Rule):
    """Every edge is real and learns."""

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """All edges."""
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
        "lottery_ticket": LotteryTicket(),
        "l1_anneal": L1Anneal(),
        "constant_fan_in": ConstantFanIn(),
    }
)
"""The rules by the name that `config.model.edges` gives them."""


def find_rule(rule: str | Rule) -> Rule:
    """A rule by its name in `RULES`, or as "n:m" (`NOfM`); a rule itself stays.

    Raises:
      ValueError: there is no rule of this name.
    """
    if isinstance(rule, Rule):
        return rule
    known = f'there are {", ".join(RULES)}, n:m such as "2:4", and objects of class Rule'
    if not isinstance(rule, str):
        raise ValueError(f"rule is {rule!r}; {known}")
    if pattern := re.fullmatch(r"(\d+):(\d+)", rule):
        return NOfM(int(pattern[1]), int(pattern[2]))
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; {known}")
    return RULES[rule]
