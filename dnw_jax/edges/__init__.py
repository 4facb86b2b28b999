"""Chooses which edges of a graph are real. Pure JAX on arrays of any shape; imports no Flax.

- `select`, `ties`: the k weights of largest magnitude, exactly (`edge_mask`).
- `straight_through`: the forward pass uses the chosen weights, the gradient reaches all of them.
- `rule`: the interface of a rule; `rules`, `structured`: the rules of the paper and patterns for
  hardware; `RULES` lists them by name.
- `budget`: how many edges are real in a layer, in several layers, and over a growing sparsity.
- `sparsify` plans which leaves of a user's parameters are sparse (`paths` names and matches them),
  `sparsifier` applies the plan, `sparsity_report` prints it.
- `keys`: random keys that may be absent.
"""

from dnw_jax.edges.budget import SparsitySchedule, edge_budget
from dnw_jax.edges.keys import split_key
from dnw_jax.edges.rule import Rule, State
from dnw_jax.edges.rules import RULES, find_rule
from dnw_jax.edges.select import edge_mask
from dnw_jax.edges.sparsifier import Sparsifier
from dnw_jax.edges.sparsify import sparsify
from dnw_jax.edges.straight_through import straight_through, top_edges
from dnw_jax.edges.structured import ConstantFanIn, NOfM

__all__ = [
    "RULES",
    "ConstantFanIn",
    "NOfM",
    "Rule",
    "Sparsifier",
    "SparsitySchedule",
    "State",
    "edge_budget",
    "edge_mask",
    "find_rule",
    "sparsify",
    "split_key",
    "straight_through",
    "top_edges",
]
