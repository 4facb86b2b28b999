"""Every way to choose a wiring: a small dataclass each, one call signature, explicit state.

`rule.init` gives the state that a rule keeps (the fixed mask of a random graph; nothing for most),
which is never trained. `rule.mask` tells which edges are real. Calling the rule gives the
weights that carry signal in this forward pass, with the rule's own gradient.
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
        return jnp.where(self.mask(weights, state, num_edges), weights, jnp.zeros_like(weights))


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
class Random(Rule):
    """A random graph: a mask drawn once; its state. Only its edges learn."""

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

    def mask(
        self, weights: Float[Array, "*shape"], state: State, num_edges: Int[Array, ""] | int
    ) -> Bool[Array, "*shape"]:
        """The mask drawn at the start, whatever the weights are now."""
        del weights, num_edges
        assert state is not None
        return state


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
    {"dnw": DNW(), "random": Random(), "complete": Complete(), "dnw_no_update": NoUpdate()}
)
"""The rules by the name that `config.model.edges` gives them."""
