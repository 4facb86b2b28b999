"""The edges of a graph: one weight for every possible edge, and the rule that makes some real."""

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import Rule, State
from dnw_jax.graphs.initialization import uniform_fan_in


class RuleState(nnx.Variable):
    """What a rule keeps between steps (the mask of a random graph): saved, never trained."""


class EdgeGraph(nnx.Module):
    """Every possible edge from `num_sources` to `num_targets` nodes, `num_edges` of them real.

    Attributes:
      weight: float32 [sources, targets]; planes @ weight carries signal from sources to targets.
      state: the rule's state, or None.
    """

    def __init__(
        self,
        num_sources: int,
        num_targets: int,
        num_edges: int,
        rule: Rule,
        *,
        forbidden: Bool[Array, "sources targets"] | None = None,
        rngs: nnx.Rngs,
    ):
        weight = uniform_fan_in(num_sources)(rngs.params(), (num_sources, num_targets))
        self.rule = rule
        self.num_edges = num_edges
        self.weight = nnx.Param(weight)
        state = rule.init(rngs.edges(), weight, num_edges, forbidden)
        self.state = None if state is None else RuleState(state)

    def mask(self) -> Bool[Array, "sources targets"]:
        """The real edges."""
        return self.rule.mask(self.weight[...], self._state(), self.num_edges)

    def real_weights(
        self, *, train: bool = False, key: Key[Array, ""] | None = None
    ) -> Float[Array, "sources targets"]:
        """The weights that carry signal now, float32: chosen in full precision."""
        return self.rule(self.weight[...], self._state(), self.num_edges, train=train, key=key)

    def _state(self) -> State:
        return None if self.state is None else self.state[...]
