"""Which edges of a graph are real: the heart of dnw_jax. Pure JAX, on any array; knows no Flax."""

from dnw_jax.edges.budget import edge_budget
from dnw_jax.edges.rules import RULES, Rule, State
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.straight_through import straight_through, top_edges

__all__ = ["RULES", "Rule", "State", "edge_budget", "edge_mask", "straight_through", "top_edges"]
