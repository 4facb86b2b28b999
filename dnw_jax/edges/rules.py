"""Every way to choose a wiring: a small dataclass each, one call signature, explicit state.

`rule.init` gives the state that a rule keeps (the fixed mask of a random graph; nothing for most),
which is never trained. `rule.mask` tells which edges are real. Calling the rule gives the
weights that carry signal in this forward pass, with the rule's own gradient. The names are those
of the paper's Table 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.straight_through import top_edges

State = Array | None  # most rules keep none


@dataclass(frozen=True)
class Rule:
    """What the rules share; each replaces only what differs.

    No state; the top k edges are real, chosen anew at each call; only real edges learn.
    """

    def init(
        self,
        key: Key[Array, ""],
        weights: Float[Array, "*shape"],
        num_edges: int,
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
        return _only(self.mask(weights, state, num_edges), weights)

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


def _only(mask: Bool[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.where(mask, weights, jnp.zeros_like(weights))


@dataclass(frozen=True)
class DNW(Rule):
    """Discovering Neural Wirings: the top k edges are real and every edge learns (section 2)."""

    def __call__(
        self,
        weights: Float[Array, "*shape"],
        state: State,
        num_edges: Int[Array, ""] | int,
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*shape"]:
        """The top k weights; the cotangent passes to all of them unchanged."""
        del state, train, key
        return top_edges(weights, num_edges)


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

    def init(
        self,
        key: Key[Array, ""],
        weights: Float[Array, "*shape"],
        num_edges: int,
        forbidden: Bool[Array, "*shape"] | None = None,
    ) -> Bool[Array, "*shape"]:
        """Draws `num_edges` edges uniformly of those not `forbidden` (all, if fewer)."""
        lots = jax.random.uniform(key, weights.shape)
        if forbidden is None:
            return edge_mask(lots, num_edges)
        return edge_mask(jnp.where(forbidden, 0, lots), num_edges) & ~forbidden


@dataclass(frozen=True)
class FineTune(FixedMask):
    """The top k edges of a trained complete graph, which go on learning from where they were."""

    def init(
        self,
        key: Key[Array, ""],
        weights: Float[Array, "*shape"],
        num_edges: int,
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
            return _only(real, weights)
        if key is None:
            raise ValueError("targeted dropout draws random numbers in training: pass key=...")
        return _only(real | ~jax.random.bernoulli(key, self.rho, weights.shape), weights)


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
        num_targets = weights.shape[-1]
        num_sources = weights.size // num_targets
        # Though the budget of the whole was rounded already, this drops floor(n * sparsity).
        kept = num_sources - (weights.size - num_edges) // num_targets
        columns = weights.reshape(num_sources, num_targets)
        mask = jax.vmap(edge_mask, in_axes=(1, None), out_axes=1)(columns, jnp.asarray(kept))
        return mask.reshape(weights.shape)


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
        key: Key[Array, ""],
        weights: Float[Array, "*shape"],
        num_edges: int,
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
        part = progress / self.anneal
        budget = size - jnp.round((size - num_edges) * part).astype(jnp.int32)
        return jnp.where(part < 1, budget, num_edges)  # float32 knows no size above 2**24 exactly

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
    }
)
"""The rules by the name that `config.model.edges` gives them."""
