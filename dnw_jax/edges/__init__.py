"""Which edges of a graph are real: the heart of dnw_jax. Pure JAX, on any array; knows no Flax."""

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
