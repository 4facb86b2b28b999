"""The edges of a graph: a weight for every possible edge, and a rule that makes some real."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from dnw_jax.edges import Rule
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.graphs.sparse_layer import SparseLayer


class EdgeGraph(SparseLayer):
    """All possible edges from `num_sources` to `num_targets` nodes; the rule makes some real.

    Attributes:
      weight: float32 [sources, targets]; `planes @ weight` sends signal from sources to targets.

    Args:
      num_sources, num_targets: numbers of nodes.
      sparsity: fraction of the edges that is not real, in [0, 1].
      rule: chooses the real edges.
      forbidden: edges that a random wiring must not contain.
      rngs: the stream "params" initialises the weights, "edges" draws a random wiring.
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
        init = uniform_fan_in(num_sources)
        self.weight = nnx.Param(init(rngs.params(), (num_sources, num_targets)))
        self._init_rule(rule, sparsity, rngs.edges(), forbidden)

    @property
    def weights(self) -> Float[Array, "sources targets"]:
        """The weights of all possible edges."""
        return self.weight[...]

    def _set_weights(self, weights: Float[Array, "sources targets"]) -> None:
        self.weight = nnx.Param(weights)
