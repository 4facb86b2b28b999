"""A transform of parameters that keeps some weights, in the shape of optax's: init and apply."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from dnw_jax.edges.budget import Counts, SparsitySchedule, annealed_budget
from dnw_jax.edges.keys import split_key
from dnw_jax.edges.paths import named_leaves
from dnw_jax.edges.rule import Rule
from dnw_jax.edges.rules import FixedMask
from dnw_jax.edges.select import edge_masks
from dnw_jax.edges.sparsity_report import LeafReport, SparsityReport
from dnw_jax.edges.ties import num_true

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Step = Int[Array, ""] | int
RuleStates = dict[str, Array]  # by path, what a rule keeps: a fixed wiring; of most rules nothing


@dataclass(frozen=True, eq=False)  # by identity, so that it may be static in jit
class Sparsifier:
    """What `sparsify` gives: pure functions, to be used inside or outside of jit.

    Attributes:
      rule: which weights are kept.
      shapes: of the sparse leaves, by path.
      first, last: edges kept at the start and the end of the schedule: of each leaf by path, or one
        number for all together.
      schedule: how the sparsity grows, or None.
    """

    rule: Rule
    shapes: Mapping[str, Shape]
    first: Counts | int
    last: Counts | int
    schedule: SparsitySchedule | None

    def init(self, params: Tree, key: Key[Array, ""] | None = None) -> RuleStates:
        """What the rule keeps, to be saved with `params`: arrays by path, none for most rules.

        The rule `random` draws its wiring with `key` (by default that of 0); `fine_tune` and
        `lottery_ticket` take that of `params`, which are trained already.
        """
        key = jax.random.key(0) if key is None else key
        weights = self._weights(named_leaves(params)[0])
        counts = self._counts(weights, 0 if self.schedule else None)
        keys = split_key(key, len(weights))
        states = {
            path: self.rule.init(own, weight, counts[path])
            for own, (path, weight) in zip(keys, weights.items(), strict=True)
        }
        return {path: state for path, state in states.items() if state is not None}

    def apply(
        self,
        params: Tree,
        state: RuleStates,
        *,
        step: Step | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Tree, RuleStates]:
        """The parameters that carry signal, and the state from here on.

        The gradient passes back as the rule has it: for `dnw` unchanged, to every weight.

        Args:
          params: of the structure that `sparsify` saw.
          state: what `init` gave.
          step: the number of updates made, in training and in evaluation; a `SparsitySchedule`
            needs it.
          key: in training, for rules that draw (targeted dropout). Without it nothing is drawn: so
            in evaluation.

        Raises:
          ValueError: other parameters than planned, a schedule without `step`, or a state of
            another rule.
        """
        if step is None and self.schedule is not None:
            raise ValueError(
                "step is None; the SparsitySchedule needs it, in evaluation, too: "
                "apply(params, state, step=updates made so far)"
            )
        leaves, structure = named_leaves(params)
        weights = self._weights(leaves)
        counts, states = self._counts(weights, step), self._states(state)
        keys = split_key(key, len(weights))
        train = key is not None
        real = {
            path: self.rule(weight, states.get(path), counts[path], train=train, key=own)
            for own, (path, weight) in zip(keys, weights.items(), strict=True)
        }
        effective = [real.get(path, leaf) for path, leaf in leaves.items()]
        return jax.tree_util.tree_unflatten(structure, effective), state

    def wiring(
        self, params: Tree, state: RuleStates | None = None, *, step: Step | None = None
    ) -> dict[str, Bool[Array, "..."]]:
        """The weights kept of every sparse leaf, by path.

        `state` is needed for rules that keep their wiring. Of a schedule that at `step`, or at its
        end.
        """
        weights, states = self._weights(named_leaves(params)[0]), self._states(state or {})
        counts = self._counts(weights, step)
        return {
            path: self.rule.mask(weight, states.get(path), counts[path])
            for path, weight in weights.items()
        }

    def report(
        self, params: Tree, state: RuleStates | None = None, *, step: Step | None = None
    ) -> SparsityReport:
        """What is kept of every leaf, as a table to print; arguments as those of `wiring`.

        Of mere shapes, what is planned.
        """
        leaves = named_leaves(params)[0]
        if isinstance(self.last, dict) and not all(
            isinstance(leaves.get(path), jax.Array) for path in self.shapes
        ):
            kept = dict(self.last)
        else:
            if isinstance(self.rule, FixedMask) and state is None:
                state = self.init(params)
            kept = {
                p: int(jnp.sum(mask)) for p, mask in self.wiring(params, state, step=step).items()
            }
        shapes = {p: tuple(leaf.shape) for p, leaf in leaves.items() if hasattr(leaf, "shape")}
        note = "at the end of the schedule" if self.schedule and step is None else ""
        return SparsityReport(
            tuple(
                LeafReport(path, shape, kept.get(path, math.prod(shape)), path in kept)
                for path, shape in shapes.items()
            ),
            note,
        )

    def _weights(self, leaves: Mapping[str, Any]) -> dict[str, Array]:
        """The sparse ones of all `leaves`, which must be of the shapes that were planned for."""
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

    def _states(self, state: RuleStates) -> RuleStates:
        expected = set(self.shapes) if isinstance(self.rule, FixedMask) else set()
        if not isinstance(state, Mapping) or set(state) != expected:
            raise ValueError(
                f"state is not one of {self.rule} for these parameters: pass what init(params) gave"
            )
        return state

    def _counts(
        self, weights: Mapping[str, Array], step: Step | None
    ) -> Mapping[str, Int[Array, ""] | int]:
        """Edges kept of each leaf; of a schedule at `step`, or at its end."""
        ahead = None if self.schedule is None or step is None else self.schedule.ahead(step)

        def now(first: int, last: int) -> Int[Array, ""] | int:
            return last if ahead is None else annealed_budget(first, last, ahead)

        if isinstance(self.first, int):
            assert isinstance(self.last, int)
            masks = edge_masks(list(weights.values()), now(self.first, self.last))
            return dict(zip(weights, map(num_true, masks), strict=True))
        assert not isinstance(self.last, int)
        return {path: now(self.first[path], self.last[path]) for path in weights}
