"""A transform of parameters in the shape of optax's (init and apply), which keeps some weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import Counts, SparsitySchedule, annealed_budget
from dnw_jax.edges.keys import split_key
from dnw_jax.edges.paths import named_leaves
from dnw_jax.edges.rule import Rule, checked_state
from dnw_jax.edges.select import edge_masks
from dnw_jax.edges.sparsity_report import LeafReport, SparsityReport
from dnw_jax.edges.ties import num_true

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Step = Int[Array, ""] | int
RuleStates = dict[str, Array]  # the rule's state of each sparse leaf, by path; empty for most rules


@dataclass(frozen=True, eq=False)  # compared by identity, so that jit accepts it as static argument
class Sparsifier:
    """The result of `sparsify`: pure functions for use inside or outside of jit.

    Attributes:
      rule: chooses the weights that are kept.
      shapes: shapes of the sparse leaves, by path.
      first, last: number of edges kept at the start and at the end of the schedule: a dict by path,
        or one number for all leaves together.
      schedule: how the sparsity grows, or None if it is constant.
    """

    rule: Rule
    shapes: Mapping[str, Shape]
    first: Counts | int
    last: Counts | int
    schedule: SparsitySchedule | None

    def init(self, params: Tree, key: Key[Array, ""] | None = None) -> RuleStates:
        """Returns the state of the rule for every sparse leaf, to be saved next to `params`.

        Args:
          params: parameters of the structure that `sparsify` saw. The rule `fine_tune` takes the
            wiring of these parameters, so they must be trained already.
          key: with it the rule `random` draws its wiring; by default `jax.random.key(0)`.

        Returns:
          A dict of arrays by path. It is empty for a rule without a state.

        Raises:
          ValueError: `params` do not fit this sparsifier, or the state of a rule is no array.
        """
        key = jax.random.key(0) if key is None else key
        weights = self._sparse_leaves(named_leaves(params)[0])
        counts = self._counts(weights, 0 if self.schedule else None)
        return self._init_states(weights, counts, key)

    def apply(
        self,
        params: Tree,
        state: RuleStates,
        *,
        step: Step | None = None,
        key: Key[Array, ""] | None = None,
        progress: Float[Array, ""] | float | None = None,
    ) -> tuple[Tree, RuleStates]:
        """Returns the parameters that carry signal, and the state of the rule for the next step.

        The gradient passes back as the rule defines it: for `dnw` unchanged and to every weight.

        Args:
          params: parameters of the structure that `sparsify` saw.
          state: the result of `init` or of the previous `apply`.
          step: the number of updates made so far, in training and in evaluation. Only a
            `SparsitySchedule` needs it.
          key: a random key, in training, for rules that draw (targeted dropout). Without it nothing
            is drawn, as evaluation needs it.
          progress: the part of the run, in (0, 1], at which the next update is made; in training,
            for a rule with its own `Rule.advance_state`. Without it the state stays as it is. The
            rules in `RULES` that `sparsify` accepts do not need it.

        Raises:
          ValueError: `params` or `state` do not fit this sparsifier, or `step` is missing.
        """
        if step is None and self.schedule is not None:
            raise ValueError(
                "step is None; the SparsitySchedule needs it, in evaluation, too: "
                "apply(params, state, step=updates made so far)"
            )
        leaves, structure = named_leaves(params)
        weights = self._sparse_leaves(leaves)
        counts = self._counts(weights, step)
        states = self._checked(state, weights, counts)
        if progress is not None:
            states = self._without_none(
                {
                    path: self.rule.advance_state(weights[path], leaf_state, counts[path], progress)
                    for path, leaf_state in states.items()
                }
            )
        keys = split_key(key, len(weights))
        train = key is not None
        real = {
            path: self.rule(weight, states.get(path), counts[path], train=train, key=leaf_key)
            for leaf_key, (path, weight) in zip(keys, weights.items(), strict=True)
        }
        effective = [real.get(path, leaf) for path, leaf in leaves.items()]
        return jax.tree_util.tree_unflatten(structure, effective), states

    def wiring(
        self, params: Tree, state: RuleStates | None = None, *, step: Step | None = None
    ) -> dict[str, Bool[Array, "..."]]:
        """Returns the mask of the kept weights of every sparse leaf, by path.

        Args:
          params: parameters of the structure that `sparsify` saw.
          state: needed if the rule has a state.
          step: the number of updates made so far; without it the masks are those at the end of the
            schedule.
        """
        weights = self._sparse_leaves(named_leaves(params)[0])
        counts = self._counts(weights, step)
        states = self._checked({} if state is None else state, weights, counts)
        return {
            path: self.rule.mask(weight, states.get(path), counts[path])
            for path, weight in weights.items()
        }

    def report(
        self, params: Tree, state: RuleStates | None = None, *, step: Step | None = None
    ) -> SparsityReport:
        """Returns how many weights of every leaf are kept, as a table to print.

        Args are those of `wiring`, but for two: `params` may be shapes, for which the report gives
        the planned numbers, and without a `state` it counts those of `init(params)`.

        Raises:
          ValueError: `params` are shapes and the budget is "global".
        """
        leaves = named_leaves(params)[0]
        if any(isinstance(leaves.get(path), jax.ShapeDtypeStruct) for path in self.shapes):
            if isinstance(self.last, int):
                raise ValueError(
                    'params are shapes, but the budget "global" depends on the weights: pass the '
                    "parameters themselves"
                )
            kept = dict(self.last)
        else:
            state = self.init(params) if state is None else state
            masks = self.wiring(params, state, step=step)
            kept = {path: int(jnp.sum(mask)) for path, mask in masks.items()}
        shapes = {p: tuple(leaf.shape) for p, leaf in leaves.items() if hasattr(leaf, "shape")}
        note = "at the end of the schedule" if self.schedule and step is None else ""
        return SparsityReport(
            tuple(
                LeafReport(path, shape, kept.get(path, math.prod(shape)), path in kept)
                for path, shape in shapes.items()
            ),
            note,
        )

    def _sparse_leaves(self, leaves: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the sparse ones of all `leaves` after a check of their shapes."""
        bad = [
            f"{path}: expected {shape}, found {getattr(leaves.get(path), 'shape', 'nothing')}"
            for path, shape in self.shapes.items()
            if getattr(leaves.get(path), "shape", None) != shape
        ]
        if bad:
            raise ValueError(
                "params are not those that this sparsifier was made for:\n  " + "\n  ".join(bad)
            )
        return {path: leaves[path] for path in self.shapes}

    def _init_states(
        self,
        weights: Mapping[str, Array],
        counts: Mapping[str, Int[Array, ""] | int],
        key: Key[Array, ""],
    ) -> RuleStates:
        keys = split_key(key, len(weights))
        return self._without_none(
            {
                path: self.rule.init(leaf_key, weight, counts[path])
                for leaf_key, (path, weight) in zip(keys, weights.items(), strict=True)
            }
        )

    def _checked(
        self,
        state: RuleStates,
        weights: Mapping[str, Array],
        counts: Mapping[str, Int[Array, ""] | int],
    ) -> RuleStates:
        """Returns `state` after a check that it has the leaves of what `init` returns.

        A trace of `Rule.init` finds these leaves. It has the real weights' dtypes and counts,
        because a rule may depend on them.
        """
        expected = jax.eval_shape(
            lambda weights: self._init_states(weights, counts, jax.random.key(0)), dict(weights)
        )
        if not isinstance(state, Mapping) or set(state) != set(expected):
            raise ValueError(
                f"state is not one of {self.rule} for these parameters: pass what init(params) gave"
            )
        return state

    def _counts(
        self, weights: Mapping[str, Array], step: Step | None
    ) -> Mapping[str, Int[Array, ""] | int]:
        """Returns the number of edges kept in each leaf at `step`, or at the schedule's end."""
        remaining = None
        if self.schedule is not None and step is not None:
            remaining = self.schedule.remaining(step)

        def at_step(first: int, last: int) -> Int[Array, ""] | int:
            return last if remaining is None else annealed_budget(first, last, remaining)

        if isinstance(self.first, int):
            assert isinstance(self.last, int)
            masks = edge_masks(list(weights.values()), at_step(self.first, self.last))
            return dict(zip(weights, map(num_true, masks), strict=True))
        assert not isinstance(self.last, int)
        return {path: at_step(self.first[path], self.last[path]) for path in weights}

    def _without_none(self, states: Mapping[str, Any]) -> RuleStates:
        checked = {path: checked_state(self.rule, state) for path, state in states.items()}
        return {path: state for path, state in checked.items() if state is not None}
