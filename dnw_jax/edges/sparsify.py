"""Plans a sparse model: which leaves of its parameters are sparse, and how much each keeps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dnw_jax.edges import budget as budgets
from dnw_jax.edges.budget import Sparsity, SparsitySchedule, edge_budget
from dnw_jax.edges.paths import can_be_sparse, holds_edges, matches, named_leaves, names_leaf
from dnw_jax.edges.rule import Rule
from dnw_jax.edges.rules import find_rule
from dnw_jax.edges.sparsifier import Sparsifier

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Patterns = str | Sequence[str]


def sparsify(  # noqa: PLR0917  as the optax transforms: the first few are given by position
    params: Tree,
    sparsity: Sparsity | SparsitySchedule | None = None,
    budget: str | Mapping[str, Sparsity] = "uniform",
    rule: str | Rule = "dnw",
    include: Patterns | None = None,
    exclude: Patterns = (),
) -> Sparsifier:
    """Returns a transform that keeps some weights of a model and lets all of them learn.

        sparsifier = dnw_jax.sparsify(params, sparsity=0.9)
        state = sparsifier.init(params)
        ...
        def loss(params):
            effective, _ = sparsifier.apply(params, state)
            return loss_of(model.apply(effective, images), labels)

    A leaf is named by its path, such as "encoder/layer_0/kernel" (`report` lists the paths). A
    pattern is a path, a folder, or has wildcards: "encoder", "*/kernel". By default matrices and
    convolution kernels are sparse, judged by shape and name. One-dimensional leaves, biases, norms
    and embeddings are dense; a pattern makes them sparse only if it names the leaf, not just a
    folder: "norm/scale", "*/bias".

    Args:
      params: any pytree of parameters, or of their shapes, from Flax (NNX or Linen), Equinox or
        Haiku.
      sparsity: fraction of the weights that is zero in the forward pass, in [0, 1], or a
        `SparsitySchedule`. None is allowed for n:m and where `budget` names every sparse leaf.
      budget: how the kept weights are distributed over the leaves.
        "uniform": every leaf has this sparsity, rounded by `edge_budget`.
        "erk": Erdos-Renyi-Kernel, see `budget.erdos_renyi_kernel`.
        "global": the largest weights of all leaves together, wherever they are.
        {pattern: sparsity}: each leaf has the sparsity of the last pattern that matches it; the
        others have `sparsity`, or stay dense if it is None.
        All but "uniform" round the total once, so "erk" and "global" keep exactly
        `edge_budget(size of all sparse leaves, sparsity)`. The rule constant_fan_in then rounds up
        for each target.
      rule: chooses the weights, and which of them learn: a name in `dnw_jax.edges.RULES`, "n:m"
        such as "2:4", or a `Rule`. The rules n:m and constant_fan_in expect Flax's axes, inputs
        last but one and outputs last; for other layouts pass `NOfM(n, m, axis)` or
        `ConstantFanIn(target_axis)`.
      include: patterns of the leaves to be sparse; by default all that hold edges.
      exclude: patterns of leaves that stay dense in any case.

    Returns:
      A `Sparsifier`: `init` gives the rule's state, `apply` the parameters that carry signal.

    Raises:
      ValueError: a pattern that changes nothing (the paths are listed), an unknown budget or rule,
        leaves that do not fit the rule (all are listed), or settings that contradict each other.
    """
    rule = find_rule(rule)
    by_path = dict(budget) if isinstance(budget, Mapping) else {}
    for pattern, leaf_sparsity in by_path.items():
        budgets.check_fraction(leaf_sparsity, f"budget[{pattern!r}]")
    leaves = {path: leaf for path, leaf in named_leaves(params)[0].items() if can_be_sparse(leaf)}
    if not leaves:
        raise ValueError("params holds no array of floats; pass the parameters of a model")
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    sparsities, chosen = _select_leaves(shapes, by_path, _as_list(include, "include"), exclude)
    if by_path and sparsity is None:
        chosen = {path: shape for path, shape in chosen.items() if path in sparsities}
    _check_fit(rule, chosen, list(leaves))
    _check_together(rule, sparsity, budget)

    def counts_at(sparsity: Sparsity | None) -> budgets.Counts | int:
        return _counts_at(sparsity, budget, chosen, rule, sparsities)

    if isinstance(sparsity, SparsitySchedule):
        first, last = counts_at(sparsity.initial), counts_at(sparsity.final)
        return Sparsifier(rule, chosen, first, last, sparsity)
    counts = counts_at(sparsity)
    return Sparsifier(rule, chosen, counts, counts, None)


def _as_list(patterns: Patterns | None, field: str) -> list[str] | None:
    if patterns is None:
        return None
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise ValueError(f"{field} is {patterns!r}; it must be a pattern of paths, or several")
    return list(patterns)


def _select_leaves(
    shapes: Mapping[str, Shape],
    by_path: Mapping[str, Sparsity],
    include: list[str] | None,
    exclude: Patterns,
) -> tuple[dict[str, Sparsity], dict[str, Shape]]:
    """Returns the sparsities that `by_path` gives, by leaf, and the shapes of all sparse leaves."""

    def selected_by(path: str, patterns: Sequence[str]) -> list[str]:
        return [
            p
            for p in patterns
            if matches(path, p) and (holds_edges(path, shapes[path]) or names_leaf(p, path))
        ]

    excluded = _as_list(exclude, "exclude") or []
    candidates = [p for p in shapes if not any(matches(p, pattern) for pattern in excluded)]
    deciding = {path: selected_by(path, list(by_path))[-1:] for path in candidates}
    used = {
        "include": {p for path in candidates for p in selected_by(path, include or ())},
        "exclude": {p for p in excluded if any(matches(path, p) for path in shapes)},
        "budget": {p for patterns in deciding.values() for p in patterns},
    }
    for field, patterns in (("include", include), ("exclude", excluded), ("budget", by_path)):
        _check_use(field, [p for p in patterns or () if p not in used[field]], shapes)
    sparsities = {path: by_path[p] for path, patterns in deciding.items() for p in patterns}
    return sparsities, {
        path: shapes[path]
        for path in candidates
        if path in sparsities
        or (holds_edges(path, shapes[path]) if include is None else selected_by(path, include))
    }


def _check_use(field: str, idle: Sequence[str], shapes: Mapping[str, Shape]) -> None:
    """Raises ValueError, which lists the paths, if some patterns are `idle`: change nothing."""
    if not idle:
        return
    has_match = any(matches(path, p) for path in shapes for p in idle)
    why = (
        "changes nothing (its leaves are dense by default, excluded, or matched by a later pattern)"
        if has_match
        else "matches no leaf"
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
    sparsity: Sparsity | SparsitySchedule | None,
    budget: str | Mapping[str, Sparsity],
) -> None:
    scheduled = isinstance(sparsity, SparsitySchedule)
    if type(rule).penalty is not Rule.penalty:
        raise ValueError(
            f"rule is {rule}, which only dnw_jax.train can use: its penalty is a term of the loss, "
            "which sparsify does not see; use a rule without a penalty (for l1_anneal: "
            '"dnw_no_update" with sparsity=SparsitySchedule(..., power=1)), and add the term, such '
            "as L1, to your loss"
        )
    if scheduled and (rule.mask_is_fixed or rule.fixes_sparsity):
        raise ValueError(
            f"sparsity is a SparsitySchedule, but {rule} has one sparsity from start to end; "
            "give a number, or none for n:m"
        )
    if scheduled and isinstance(budget, Mapping):
        raise ValueError(
            "sparsity is a SparsitySchedule and budget gives single leaves a sparsity; "
            'use one of them, or budget="uniform", "erk" or "global"'
        )
    if rule.fixes_sparsity and budget != "uniform":
        raise ValueError(
            f"budget is {budget!r}; {rule} fixes the sparsity of every leaf: leave budget at "
            '"uniform"'
        )
    if rule.draws_wiring and budget == "global":
        raise ValueError(
            f'budget is "global", which ranks weights by size; {rule} draws a random wiring, which '
            'has no such rank: use "uniform" or "erk"'
        )


def _counts_at(
    sparsity: Sparsity | None,
    budget: str | Mapping[str, Sparsity],
    shapes: Mapping[str, Shape],
    rule: Rule,
    sparsities: Mapping[str, Sparsity],
) -> budgets.Counts | int:
    """Returns the number of edges kept in each leaf, or in all together for "global"."""
    if isinstance(budget, Mapping):
        return budgets.explicit(
            shapes,
            {path: rule.checked_sparsity(sparsities.get(path, sparsity)) for path in shapes},
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
