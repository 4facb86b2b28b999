"""The edges of a graph: one weight for every possible edge, and the rule that makes some real."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from dnw_jax.edges import Rule
from dnw_jax.graphs.initialization import uniform_fan_in
from dnw_jax.graphs.sparse_layer import SparseLayer


class EdgeGraph(SparseLayer):
    """Every possible edge from `num_sources` to `num_targets` nodes, some of them real.

    Attributes:
      weight: float32 [sources, targets]; planes @ weight carries signal from sources to targets.
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
        self.choose(sparsity, rule, rngs.edges(), forbidden)

    @property
    def weights(self) -> Float[Array, "sources targets"]:
        """Of every possible edge."""
        return self.weight[...]

    def _replace(self, weights: Float[Array, "sources targets"]) -> None:
        self.weight = nnx.Param(weights)
