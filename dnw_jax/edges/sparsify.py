"""Any model sparse while it trains: which leaves are sparse, how much is kept of each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dnw_jax.edges import budget as budgets
from dnw_jax.edges.budget import SparsitySchedule, edge_budget
from dnw_jax.edges.paths import (
    check_patterns,
    holds_edges,
    is_array_of_floats,
    matches,
    named_leaves,
)
from dnw_jax.edges.rule import Rule
from dnw_jax.edges.rules import FixedMask, L1Anneal, find_rule
from dnw_jax.edges.sparsifier import Sparsifier

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Patterns = str | Sequence[str]


def sparsify(  # noqa: PLR0917  as the optax transforms: the first few are given by position
    params: Tree,
    sparsity: float | int | SparsitySchedule | None = None,
    budget: str | Mapping[str, float | int] = "uniform",
    rule: str | Rule = "dnw",
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> Sparsifier:
    """A transform that keeps some weights of a model and lets all of them learn.

        sparsifier = dnw_jax.sparsify(params, sparsity=0.9)
        state = sparsifier.init(params)
        ...
        def loss(params):
            effective, _ = sparsifier.apply(params, state)
            return loss_of(model.apply(effective, images), labels)

    Paths are those of `report`, such as "encoder/layer_0/kernel". A pattern is a path, a folder, or
    has wildcards: "encoder", "*/kernel". One that matches nothing is an error.

    Args:
      params: any pytree of parameters, or of their shapes: of Flax (NNX or Linen), Equinox, Haiku.
      sparsity: share of the weights that are zero in the forward pass, in [0, 1], or how it grows.
        Needed, but for N:M and where `budget` names every leaf.
      budget: how the weights that are kept are shared out. "uniform": each leaf by `edge_budget`.
        "erk": Erdos-Renyi-Kernel. "global": the largest of all leaves together, wherever they are.
        Or {pattern: sparsity}: leaves of their own sparsity, the last pattern that matches counts;
        others have `sparsity`, or stay dense without it. All but "uniform" keep
        `edge_budget(all weights, sparsity)` in total, exactly.
      rule: which weights, and which of them learn: a name in `dnw_jax.edges.RULES`, "n:m" such as
        "2:4", or a `Rule`.
      include: patterns of the leaves to be sparse. By default matrices and convolution kernels;
        not biases, norms, embeddings.
      exclude: patterns of leaves that stay dense in any case.

    Raises:
      ValueError: a pattern that matches nothing, an unknown budget or rule, leaves that do not fit
        the rule (all of them), or settings that contradict each other.
    """
    leaves = {
        path: leaf for path, leaf in named_leaves(params)[0].items() if is_array_of_floats(leaf)
    }
    if not leaves:
        raise ValueError("params holds no array of floats; pass the parameters of a model")
    rule = find_rule(rule)
    by_path = budget if isinstance(budget, Mapping) else {}
    include, exclude = (_listed(patterns) for patterns in (include, exclude))
    for field, patterns in (("include", include), ("exclude", exclude), ("budget", by_path)):
        check_patterns(patterns, list(leaves), field)
    chosen = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    own = {path: by_path[p] for path in chosen for p in by_path if matches(path, p)}
    chosen = {
        path: shape
        for path, shape in chosen.items()
        if not any(matches(path, p) for p in exclude)
        and (
            path in own
            or (any(matches(path, p) for p in include) if include else holds_edges(path, shape))
        )
        and (path in own or sparsity is not None or not by_path)
    }
    _check_shapes(rule, chosen, list(leaves))
    schedule = sparsity if isinstance(sparsity, SparsitySchedule) else None
    ends: tuple[float | int | None, float | int | None]
    if isinstance(sparsity, SparsitySchedule):
        _check_schedule(rule, by_path)
        ends = (sparsity.initial, sparsity.final)
    else:
        ends = (sparsity, sparsity)
    first, last = (_shared_out(budget, chosen, rule, end, own) for end in ends)
    return Sparsifier(rule, chosen, first, last, schedule)


def _listed(patterns: Patterns | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def _check_shapes(rule: Rule, shapes: Mapping[str, Shape], paths: Sequence[str]) -> None:
    if isinstance(rule, L1Anneal):
        raise ValueError(
            "rule is l1_anneal, which anneals by the progress of dnw_jax's own training; here: "
            'rule="dnw_no_update", sparsity=SparsitySchedule(..., power=1), an L1 term in the loss'
        )
    if not shapes:
        raise ValueError("no leaf is to be sparse; the paths are\n  " + "\n  ".join(paths))
    bad = [f"{path}: {problem}" for path, s in shapes.items() if (problem := rule.refuses(s))]
    if bad:
        raise ValueError(f"{rule} does not fit; exclude=[...] these:\n  " + "\n  ".join(bad))


def _check_schedule(rule: Rule, by_path: Mapping[str, float | int]) -> None:
    if isinstance(rule, FixedMask):
        raise ValueError(
            f"sparsity is a SparsitySchedule, and {rule} keeps the wiring of the start; "
            "give a number"
        )
    if by_path:
        raise ValueError(
            "sparsity is a SparsitySchedule and budget names sparsities of their own; "
            'use one of them, or budget="uniform", "erk" or "global"'
        )


def _shared_out(
    budget: str | Mapping[str, float | int],
    shapes: Mapping[str, Shape],
    rule: Rule,
    sparsity: float | int | None,
    own: Mapping[str, float | int],
) -> budgets.Counts | int:
    """Edges kept of each leaf, or of all together."""
    if isinstance(budget, Mapping):
        sparsities = {path: own.get(path, sparsity) for path in shapes}
        return budgets.explicit(
            shapes, {path: rule.checked_sparsity(each) for path, each in sparsities.items()}
        )
    sparsity = rule.checked_sparsity(sparsity)
    match budget:
        case "uniform":
            return budgets.uniform(shapes, sparsity)
        case "erk":
            return budgets.erdos_renyi_kernel(shapes, sparsity)
        case "global":
            return edge_budget(sum(map(math.prod, shapes.values())), sparsity)
    raise ValueError(
        f"budget is {budget!r}; it must be 'uniform', 'erk', 'global' or {{pattern: sparsity}}"
    )
