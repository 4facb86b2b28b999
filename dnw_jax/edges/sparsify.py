"""Any model sparse while it trains: which leaves are sparse, how much is kept of each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dnw_jax.edges import budget as budgets
from dnw_jax.edges.budget import Share, SparsitySchedule, edge_budget
from dnw_jax.edges.paths import can_be_sparse, holds_edges, matches, named_leaves, names
from dnw_jax.edges.rule import Rule
from dnw_jax.edges.rules import FixedMask, L1Anneal, Random, find_rule
from dnw_jax.edges.sparsifier import Sparsifier
from dnw_jax.edges.structured import NOfM

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Patterns = str | Sequence[str]


def sparsify(  # noqa: PLR0917  as the optax transforms: the first few are given by position
    params: Tree,
    sparsity: Share | SparsitySchedule | None = None,
    budget: str | Mapping[str, Share] = "uniform",
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

    Leaves are called by their path, such as "encoder/layer_0/kernel" (see `report`). A pattern is a
    path, a folder, or has wildcards: "encoder", "*/kernel". By default matrices and convolution
    kernels are sparse, to judge by shape and name; one-dimensional leaves, biases, norms and
    embeddings are dense, and a folder does not change that: name them ("norm/scale", "*/bias").

    Args:
      params: any pytree of parameters, or of their shapes: of Flax (NNX or Linen), Equinox, Haiku.
      sparsity: share of the weights that are zero in the forward pass, in [0, 1], or how it grows.
        Needed, but for n:m and where `budget` names every leaf.
      budget: how the weights that are kept are shared out. "uniform": each leaf by `edge_budget`.
        "erk": Erdos-Renyi-Kernel. "global": the largest of all leaves together, wherever they are;
        these two keep exactly `edge_budget(size of all, sparsity)`. Or {pattern: sparsity}: leaves
        of their own sparsity, the last pattern that matches counts; others have `sparsity`, or stay
        dense without it; the sum is rounded once. (constant_fan_in rounds up for each target.)
      rule: which weights, and which of them learn: a name in `dnw_jax.edges.RULES`, "n:m" such as
        "2:4", or a `Rule`. n:m and constant_fan_in take Flax's axes, inputs last but one and
        outputs last; elsewhere give `NOfM(n, m, axis)`, `ConstantFanIn(target_axis)`.
      include: patterns of the leaves to be sparse; by default all that hold edges.
      exclude: patterns of leaves that stay dense in any case.

    Raises:
      ValueError: a pattern that changes nothing (the paths are listed), an unknown budget or rule,
        leaves that do not fit the rule (all of them), or settings that contradict each other.
    """
    rule = find_rule(rule)
    by_path = dict(budget) if isinstance(budget, Mapping) else {}
    for pattern, own in by_path.items():
        budgets.check_fraction(own, f"budget[{pattern!r}]")
    leaves = {path: leaf for path, leaf in named_leaves(params)[0].items() if can_be_sparse(leaf)}
    if not leaves:
        raise ValueError("params holds no array of floats; pass the parameters of a model")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    own_share, chosen = _chosen(shapes, by_path, _listed(include, "include"), exclude)
    if by_path and sparsity is None:
        chosen = {path: shape for path, shape in chosen.items() if path in own_share}
    _check_fit(rule, chosen, list(leaves))
    _check_together(rule, sparsity, budget)

    def shared_out(share: Share | None) -> budgets.Counts | int:
        return _shared_out(budget, chosen, rule, share, own_share)

    if isinstance(sparsity, SparsitySchedule):
        first, last = shared_out(sparsity.initial), shared_out(sparsity.final)
        return Sparsifier(rule, chosen, first, last, sparsity)
    counts = shared_out(sparsity)
    return Sparsifier(rule, chosen, counts, counts, None)


def _listed(patterns: Patterns | None, field: str) -> list[str] | None:
    if patterns is None:
        return None
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Sequence) or not all(isinstance(each, str) for each in patterns):
        raise ValueError(f"{field} is {patterns!r}; it must be a pattern of paths, or several")
    return list(patterns)


def _chosen(
    shapes: Mapping[str, Shape],
    by_path: Mapping[str, Share],
    include: list[str] | None,
    exclude: Patterns,
) -> tuple[dict[str, Share], dict[str, Shape]]:
    """Leaves of a sparsity of their own, and all leaves that are to be sparse."""

    def selected_by(path: str, patterns: Sequence[str]) -> list[str]:
        return [
            p
            for p in patterns
            if matches(path, p) and (holds_edges(path, shapes[path]) or names(p, path))
        ]

    excluded = _listed(exclude, "exclude") or []
    candidates = [p for p in shapes if not any(matches(p, pattern) for pattern in excluded)]
    deciding = {path: selected_by(path, list(by_path))[-1:] for path in candidates}
    used = {
        "include": {p for path in candidates for p in selected_by(path, include or ())},
        "exclude": {p for p in excluded if any(matches(path, p) for path in shapes)},
        "budget": {p for patterns in deciding.values() for p in patterns},
    }
    for field, patterns in (("include", include), ("exclude", excluded), ("budget", by_path)):
        _check_use(field, [p for p in patterns or () if p not in used[field]], shapes)
    own = {path: by_path[p] for path, patterns in deciding.items() for p in patterns}
    return own, {
        path: shapes[path]
        for path in candidates
        if path in own
        or (holds_edges(path, shapes[path]) if include is None else selected_by(path, include))
    }


def _check_use(field: str, idle: Sequence[str], shapes: Mapping[str, Shape]) -> None:
    """Refuses patterns that change nothing, and lists the paths."""
    if not idle:
        return
    dense = any(matches(path, p) for path in shapes for p in idle)
    why = (
        "decides nothing (what it matches is dense by default, excluded, or matched by a later one)"
        if dense
        else "nothing matches"
    )
    raise ValueError(
        f"{field}: {', '.join(map(repr, idle))}: {why}; the paths are\n  " + "\n  ".join(shapes)
    )


def _check_fit(rule: Rule, shapes: Mapping[str, Shape], paths: Sequence[str]) -> None:
    if not shapes:
        raise ValueError("no leaf is to be sparse; the paths are\n  " + "\n  ".join(paths))
    problems = {path: rule.refuses(path, shape) for path, shape in shapes.items()}
    bad = [f"{path}: {problem}" for path, problem in problems.items() if problem]
    if bad:
        raise ValueError(f"{rule} does not fit; exclude=[...] these:\n  " + "\n  ".join(bad))


def _check_together(
    rule: Rule,
    sparsity: Share | SparsitySchedule | None,
    budget: str | Mapping[str, Share],
) -> None:
    scheduled = isinstance(sparsity, SparsitySchedule)
    if isinstance(rule, L1Anneal):
        raise ValueError(
            "rule is l1_anneal, which anneals by the progress of dnw_jax's own training; here: "
            'rule="dnw_no_update", sparsity=SparsitySchedule(..., power=1), an L1 term in the loss'
        )
    if scheduled and isinstance(rule, FixedMask | NOfM):
        raise ValueError(
            f"sparsity is a SparsitySchedule, but {rule} has one sparsity from start to end; "
            "give a number, or none for n:m"
        )
    if scheduled and isinstance(budget, Mapping):
        raise ValueError(
            "sparsity is a SparsitySchedule and budget names sparsities of their own; "
            'use one of them, or budget="uniform", "erk" or "global"'
        )
    if isinstance(rule, NOfM) and budget != "uniform":
        raise ValueError(f'budget is {budget!r}; {rule} fixes every group: leave it at "uniform"')
    if isinstance(rule, Random) and budget == "global":
        raise ValueError(
            'budget is "global", which ranks weights by size; a random wiring has no such rank: '
            'use "uniform" or "erk"'
        )


def _shared_out(
    budget: str | Mapping[str, Share],
    shapes: Mapping[str, Shape],
    rule: Rule,
    sparsity: Share | None,
    own: Mapping[str, Share],
) -> budgets.Counts | int:
    """Edges kept of each leaf, or of all together."""
    if isinstance(budget, Mapping):
        rest = {path: own.get(path, sparsity) for path in shapes}
        return budgets.explicit(
            shapes, {path: rule.checked_sparsity(share) for path, share in rest.items()}
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
