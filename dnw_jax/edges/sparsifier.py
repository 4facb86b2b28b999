"""A transform of parameters that keeps some weights, in the shape of optax's: init and apply."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dnw_jax.edges.budget import Counts, SparsitySchedule, annealed_budget
from dnw_jax.edges.paths import named_leaves
from dnw_jax.edges.rule import Rule
from dnw_jax.edges.rules import FixedMask
from dnw_jax.edges.select import edge_masks
from dnw_jax.edges.sparsity_report import LeafReport, SparsityReport

Tree = Any  # a pytree of arrays
Shape = tuple[int, ...]
Count = Int[Array, ""] | int


class SparsifierState(NamedTuple):
    """What a sparsifier keeps from step to step: arrays, to be saved with the parameters.

    Attributes:
      ahead: of a `SparsitySchedule`, how much of its way is left, 1 .. 0; else None.
      rules: by path, what the rule keeps of a leaf (the mask of `random` and `fine_tune`).
    """

    ahead: Float[Array, ""] | None
    rules: dict[str, Array]


@dataclass(frozen=True)
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

    def init(self, params: Tree, key: Key[Array, ""] | None = None) -> SparsifierState:
        """The state at the start; `key` is needed by the rule `random`, which draws its wiring.

        `fine_tune` and `lottery_ticket` take the wiring of `params`, which are trained already.
        """
        weights = self._weights(params)
        ahead = None if self.schedule is None else self.schedule.ahead(0)
        counts = self._counts(weights, ahead)
        keys = dict(zip(weights, _keys(key, len(weights)), strict=True))
        states = {path: self.rule.init(keys[path], w, counts[path]) for path, w in weights.items()}
        return SparsifierState(ahead, {p: s for p, s in states.items() if s is not None})

    def apply(
        self,
        params: Tree,
        state: SparsifierState,
        *,
        step: Int[Array, ""] | int | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Tree, SparsifierState]:
        """The parameters that carry signal, and the state from here on.

        The gradient passes back as the rule has it: for `dnw` unchanged, to every weight.

        Args:
          params: of the structure that `sparsify` saw.
          step: the number of the update, which a `SparsitySchedule` needs. Without it the sparsity
            stays where it was: so in evaluation.
          key: in training, for rules that draw (targeted dropout). Without it nothing is drawn.
        """
        weights = self._weights(params)
        if self.schedule is not None and step is not None:
            state = state._replace(ahead=self.schedule.ahead(step))
        counts = self._counts(weights, state.ahead)
        keys = dict(zip(weights, _keys(key, len(weights)), strict=True))
        train = key is not None
        real = {
            path: self.rule(w, state.rules.get(path), counts[path], train=train, key=keys[path])
            for path, w in weights.items()
        }
        leaves, structure = named_leaves(params)
        effective = [real.get(path, leaf) for path, leaf in leaves.items()]
        return jax.tree_util.tree_unflatten(structure, effective), state

    def wiring(
        self, params: Tree, state: SparsifierState | None = None
    ) -> dict[str, Bool[Array, "..."]]:
        """The weights kept of every sparse leaf, by path; without `state` as at the end."""
        weights = self._weights(params)
        if state is None and isinstance(self.rule, FixedMask):
            raise ValueError(f"{self.rule} keeps its wiring in the state: pass state=...")
        counts = self._counts(weights, None if state is None else state.ahead)
        states = {} if state is None else state.rules
        return {
            path: self.rule.mask(w, states.get(path), counts[path]) for path, w in weights.items()
        }

    def report(self, params: Tree, state: SparsifierState | None = None) -> SparsityReport:
        """What is kept of every leaf, as a table to print; without `state` as at the end."""
        if state is None and isinstance(self.rule, FixedMask):
            state = self.init(params, jax.random.key(0))
        wiring = {path: int(jnp.sum(mask)) for path, mask in self.wiring(params, state).items()}
        leaves = named_leaves(params)[0]
        arrays = {
            path: tuple(leaf.shape) for path, leaf in leaves.items() if hasattr(leaf, "shape")
        }
        return SparsityReport(
            tuple(
                LeafReport(path, shape, wiring.get(path, math.prod(shape)), path in wiring)
                for path, shape in arrays.items()
            )
        )

    def _weights(self, params: Tree) -> dict[str, Array]:
        """The sparse leaves of `params`, which must be of the shapes that were planned for."""
        leaves = named_leaves(params)[0]
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

    def _counts(
        self, weights: Mapping[str, Array], ahead: Float[Array, ""] | None
    ) -> Mapping[str, Count]:
        """Edges kept of each leaf now."""

        def now(first: int, last: int) -> Count:
            return last if ahead is None else annealed_budget(first, last, ahead)

        if isinstance(self.first, int):
            assert isinstance(self.last, int)
            masks = edge_masks(list(weights.values()), now(self.first, self.last))
            counts = [jnp.sum(mask, dtype=jnp.int32) for mask in masks]
            return dict(zip(weights, counts, strict=True))
        assert not isinstance(self.last, int)
        return {path: now(self.first[path], self.last[path]) for path in weights}


def _keys(key: Key[Array, ""] | None, count: int) -> Sequence[Key[Array, ""] | None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
