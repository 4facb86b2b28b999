"""The edges of a graph: one weight for every possible edge, and the rule that makes some real."""

from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from dnw_jax.edges import Rule, State, edge_budget
from dnw_jax.graphs.initialization import uniform_fan_in


class RuleState(nnx.Variable):
    """What a rule keeps between steps (the mask of a random graph): saved, never trained."""


class EdgeGraph(nnx.Module):
    """Every possible edge from `num_sources` to `num_targets` nodes, some of them real.

    Attributes:
      sparsity: the share of edges that are not real; `num_edges` are.
      weight: float32 [sources, targets]; planes @ weight carries signal from sources to targets.
      state: the rule's state, or None.
    """

    def __init__(
        self,
        num_sources: int,
        num_targets: int,
        sparsity: float,
        rule: Rule,
        *,
        forbidden: Bool[Array, "sources targets"] | None = None,
        rngs: nnx.Rngs,
    ):
        weight = uniform_fan_in(num_sources)(rngs.params(), (num_sources, num_targets))
        self.rule = rule
        self.sparsity = sparsity
        self.num_edges = edge_budget(weight.size, sparsity)
        self.weight = nnx.Param(weight)
        state = rule.init(rngs.edges(), weight, self.num_edges, forbidden)
        self.state = None if state is None else RuleState(state)

    def mask(self) -> Bool[Array, "sources targets"]:
        """The real edges."""
        return self.rule.mask(self.weight[...], self._state(), self.num_edges)

    def real_weights(
        self, *, train: bool = False, key: Key[Array, ""] | None = None
    ) -> Float[Array, "sources targets"]:
        """The weights that carry signal now, float32: chosen in full precision."""
        return self.rule(self.weight[...], self._state(), self.num_edges, train=train, key=key)

    def advance(self, progress: Float[Array, ""]) -> None:
        """Tells the rule at which part of the run, in (0, 1], the next update is."""
        self._keep(
            self.rule.advanced(self._state(), self.weight[...].size, self.num_edges, progress)
        )

    def adopt(self) -> None:
        """Tells the rule that the weights were replaced by another run's."""
        self._keep(self.rule.adopted(self.weight[...], self._state(), self.num_edges))

    def penalty(self) -> Float[Array, ""] | float:
        """What the rule adds to the loss."""
        return self.rule.penalty(self.weight[...])

    def _state(self) -> State:
        return None if self.state is None else self.state[...]

    def _keep(self, state: State) -> None:
        # A new variable: assigning to the old one is spelt differently in Flax 0.11 and 0.12.
        self.state = None if state is None else RuleState(state)
