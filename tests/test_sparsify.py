"""`sparsify`: which leaves are sparse, gradients, states of rules, every kind of pytree."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

import dnw_jax
from dnw_jax.edges import (
    RULES,
    ConstantFanIn,
    Rule,
    SparsitySchedule,
    edge_budget,
    edge_mask,
    sparsify,
)
from dnw_jax.edges.budget import annealed_budget

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
BUDGETS = ("uniform", "erk", "global")
FIXED = ("random", "fine_tune", "lottery_ticket")
TAKEN = sorted(set(RULES) - {"l1_anneal"})


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


PARAMS = {
    "encoder": {"kernel": normal(3, 3, 4, 8), "bias": normal(8)},
    "norm": {"scale": normal(8)},
    "head": {"kernel": normal(8, 12, seed=1), "bias": normal(12)},
}
KERNELS = ("encoder/kernel", "head/kernel")


def kept(sparsifier: Any, params: Any, state: Any = None) -> dict[str, int]:
    return {path: int(mask.sum()) for path, mask in sparsifier.wiring(params, state).items()}


def top(weights: jax.Array, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(np.asarray(weights)), axis=None, kind="stable")
    return np.isin(np.arange(weights.size), order[:count]).reshape(weights.shape)


# Which weights learn.


@pytest.mark.parametrize("rule", [*TAKEN, "2:4"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_gradients(rule: str, budget: str) -> None:
    if (rule, budget) in (("random", "global"), ("2:4", "erk"), ("2:4", "global")):
        return  # refused
    sparsity = None if rule == "2:4" else 0.6
    sparsifier = sparsify(PARAMS, sparsity, budget, rule)
    state = sparsifier.init(PARAMS, jax.random.key(3))
    slope = jax.tree.map(lambda p: normal(*p.shape, seed=9), PARAMS)
    real, pull = jax.vjp(lambda p: sparsifier.apply(p, state, key=KEY)[0], PARAMS)
    (gradient,) = pull(slope)
    for path in KERNELS:
        folder = path.partition("/")[0]
        learns = np.asarray(real[folder]["kernel"]) != 0
        if rule in ("dnw", "constant_fan_in", "2:4"):
            assert not np.all(learns)
            learns = np.ones(learns.shape, bool)
        np.testing.assert_array_equal(
            gradient[folder]["kernel"], np.where(learns, slope[folder]["kernel"], 0)
        )
    for folder, leaves in PARAMS.items():
        for name in set(leaves) - {"kernel"}:
            np.testing.assert_array_equal(gradient[folder][name], slope[folder][name])


def test_targeted_dropout_draws_only_with_a_key() -> None:
    sparsifier = sparsify(PARAMS, 0.8, rule="targeted_dropout")
    state = sparsifier.init(PARAMS)
    evaluated = sparsifier.apply(PARAMS, state)[0]
    trained = [sparsifier.apply(PARAMS, state, key=jax.random.key(s))[0] for s in range(3)]
    live = [int(jnp.sum(tree["head"]["kernel"] != 0)) for tree in (evaluated, *trained)]
    assert live[0] == edge_budget(96, 0.8)
    assert all(n > live[0] for n in live[1:])
    masks = [np.asarray(tree["head"]["kernel"] != 0) for tree in trained]
    assert np.any(masks[0] != masks[1])
    # Leaves of the same shape draw different numbers.
    twins = {"a": PARAMS["head"]["kernel"], "b": PARAMS["head"]["kernel"]}
    sparsifier = sparsify(twins, 0.8, rule="targeted_dropout")
    drawn, _ = sparsifier.apply(twins, sparsifier.init(twins), key=KEY)
    assert np.any(np.asarray(drawn["a"]) != np.asarray(drawn["b"]))


@pytest.mark.parametrize("rule", FIXED)
def test_fixed_wirings_stay(rule: str) -> None:
    sparsifier = sparsify(PARAMS, 0.7, rule=rule)
    state = sparsifier.init(PARAMS, jax.random.key(5))
    moved = jax.tree.map(lambda p: -2 * p[::-1], PARAMS)
    before, after = (sparsifier.wiring(p, state) for p in (PARAMS, moved))
    for path in KERNELS:
        np.testing.assert_array_equal(before[path], after[path])
        assert int(before[path].sum()) == edge_budget(before[path].size, 0.7)
        weights = PARAMS[path.partition("/")[0]]["kernel"]
        is_top = np.array_equal(before[path], top(weights, int(before[path].sum())))
        assert is_top == (rule != "random")


def test_a_random_wiring_depends_on_its_key() -> None:
    sparsifier = sparsify(PARAMS, 0.7, rule="random")
    with pytest.raises(ValueError, match=r"pass what init\(params\) gave"):
        sparsifier.wiring(PARAMS)
    states = [sparsifier.init(PARAMS, jax.random.key(seed)) for seed in (0, 0, 1)]
    masks = [np.asarray(state["head/kernel"]) for state in states]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], sparsifier.init(PARAMS)["head/kernel"])
    assert np.any(masks[0] != masks[2])


# Rules that a user writes.


@dataclasses.dataclass(frozen=True)
class LargestChange(Rule):
    """The edges whose weights moved most since the start; the state holds the initial weights."""

    def init(self, key: Any, weights: Any, num_edges: Any, forbidden: Any = None) -> jax.Array:
        return weights

    def mask(self, weights: Any, state: Any, num_edges: Any) -> jax.Array:
        return edge_mask(weights - state, num_edges)


@dataclasses.dataclass(frozen=True)
class FrozenHalfway(Rule):
    """The top edges, chosen at every update of the first half of the run and then no more."""

    def init(self, key: Any, weights: Any, num_edges: Any, forbidden: Any = None) -> jax.Array:
        return edge_mask(weights, num_edges)

    def mask(self, weights: Any, state: Any, num_edges: Any) -> jax.Array:
        return state

    def advance_state(self, weights: Any, state: Any, num_edges: Any, progress: Any) -> jax.Array:
        return jnp.where(progress <= 0.5, edge_mask(weights, num_edges), state)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_rule_with_its_own_state(budget: str) -> None:
    sparsifier = sparsify(PARAMS, 0.75, budget, LargestChange())
    state = sparsifier.init(PARAMS)
    assert set(state) == set(KERNELS)
    change = jax.tree.map(lambda p: normal(*p.shape, seed=5), PARAMS)
    params = jax.tree.map(jnp.add, PARAMS, change)
    effective, after = jax.jit(sparsifier.apply)(params, state)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    counts = {leaf.path: leaf.kept for leaf in sparsifier.report(params, state).leaves}
    for path, mask in sparsifier.wiring(params, state).items():
        folder = path.partition("/")[0]
        assert counts[path] == int(mask.sum())
        moved = params[folder]["kernel"] - state[path]
        np.testing.assert_array_equal(mask, top(moved, counts[path]))
        np.testing.assert_array_equal(effective[folder]["kernel"] != 0, mask)
    assert sparsifier.report(PARAMS).kept == sparsifier.report(params, state).kept
    shapes = jax.eval_shape(lambda: PARAMS)
    if budget != "global":
        assert str(sparsifier.report(shapes)) == str(sparsifier.report(params, state))
    for wrong in ({}, {"head/kernel": state["head/kernel"]}):
        with pytest.raises(ValueError, match=r"pass what init\(params\) gave"):
            sparsifier.apply(params, wrong)


def test_a_state_that_changes_in_training() -> None:
    sparsifier = sparsify(PARAMS, 0.75, rule=FrozenHalfway())

    @jax.jit
    def step(params: Any, state: Any, progress: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            effective, new_state = sparsifier.apply(params, state, progress=progress)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(effective)), new_state

        gradient, new_state = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.45 * g, params, gradient), new_state

    params, states = PARAMS, [sparsifier.init(PARAMS)]
    for number in range(1, 5):
        before = params
        params, state = step(params, states[-1], jnp.float32(number / 4))
        if number <= 2:
            chosen = edge_mask(before["head"]["kernel"], 24)
            np.testing.assert_array_equal(state["head/kernel"], chosen)
        else:
            jax.tree.map(np.testing.assert_array_equal, state, states[-1])
        states.append(state)
    assert np.any(states[1]["head/kernel"] != states[2]["head/kernel"])
    _, unchanged = sparsifier.apply(PARAMS, states[-1])  # evaluation
    jax.tree.map(np.testing.assert_array_equal, unchanged, states[-1])
    kept = {leaf.path: leaf.kept for leaf in sparsifier.report(params, states[-1]).leaves}
    assert kept["head/kernel"] == 24


@dataclasses.dataclass(frozen=True)
class FirstColumn(Rule):
    """A fixed mask in a class that shares no code with the package's rules."""

    mask_is_fixed = True
    draws_wiring = True

    def init(self, key: Any, weights: Any, num_edges: Any, forbidden: Any = None) -> jax.Array:
        return jnp.zeros(weights.shape, bool).at[..., 0].set(True)

    def mask(self, weights: Any, state: Any, num_edges: Any) -> jax.Array:
        return state


@dataclasses.dataclass(frozen=True)
class Half(Rule):
    """One sparsity, whatever the user asks for."""

    fixes_sparsity = True

    def checked_sparsity(self, sparsity: Any) -> float:
        return 0.5


@dataclasses.dataclass(frozen=True)
class SquaredPenalty(Rule):
    """The top edges, under an L2 penalty."""

    def penalty(self, weights: Any) -> jax.Array:
        return jnp.sum(weights**2)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        (FirstColumn(), {"sparsity": SparsitySchedule(0.9, 10)}, "one sparsity from start to end"),
        (FirstColumn(), {"budget": "global"}, "a random wiring, which has no such rank"),
        (Half(), {"sparsity": SparsitySchedule(0.9, 10)}, "one sparsity from start to end"),
        (Half(), {"budget": "erk"}, "fixes the sparsity of every leaf"),
        (SquaredPenalty(), {}, "its penalty is a term of the loss"),
    ],
)
def test_settings_that_a_users_rule_cannot_follow(rule: Rule, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsify(PARAMS, **{"sparsity": 0.9, "rule": rule, **settings})


@dataclasses.dataclass(frozen=True)
class NeedsRealWeights(Rule):
    """Its `init` fails for a count of 0 and for any dtype but bfloat16."""

    def init(self, key: Any, weights: Any, num_edges: Any, forbidden: Any = None) -> jax.Array:
        assert weights.dtype == jnp.bfloat16
        return jnp.float32(weights.size / num_edges)


def test_the_state_is_checked_with_the_real_counts_and_dtypes() -> None:
    params = {"kernel": normal(8, 8, dtype=jnp.bfloat16)}
    sparsifier = sparsify(params, 0.75, rule=NeedsRealWeights())
    state = sparsifier.init(params)
    effective, _ = sparsifier.apply(params, state)
    assert (state["kernel"], jnp.sum(effective["kernel"] != 0)) == (4, 16)
    with pytest.raises(ValueError, match=r"pass what init\(params\) gave"):
        sparsifier.apply(params, {})


@dataclasses.dataclass(frozen=True)
class PairAsState(Rule):
    """Its state is two arrays, which is not allowed."""

    def init(self, key: Any, weights: Any, num_edges: Any, forbidden: Any = None) -> Any:
        return {"first": weights, "now": weights}


def test_a_state_is_one_array() -> None:
    message = r"the state of PairAsState\(\) is a dict; it must be one array or None"
    with pytest.raises(ValueError, match=message):
        sparsify(PARAMS, 0.5, rule=PairAsState()).init(PARAMS)
    with pytest.raises(ValueError, match=message):
        dnw_jax.SparseLinear(8, 4, sparsity=0.5, rule=PairAsState(), rngs=nnx.Rngs(0))


# Schedules.


@given(
    final=st.sampled_from([0.5, 0.9, 0.98]),
    initial=st.sampled_from([0.0, 0.3]),
    begin=st.integers(0, 5),
    length=st.integers(1, 20),
    power=st.sampled_from([1.0, 3.0]),
)
def test_schedules_are_optax_polynomials(
    final: float, initial: float, begin: int, length: int, power: float
) -> None:
    schedule = SparsitySchedule(final, begin + length, begin, initial, power)
    polynomial = optax.polynomial_schedule(initial, final, power, length, begin)
    for step in range(begin + length + 3):
        sparsity = final + (initial - final) * float(schedule.remaining(step))
        assert sparsity == pytest.approx(float(polynomial(step)), abs=1e-6)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("power", [1, 3])
def test_a_growing_sparsity_compiles_once(budget: str, power: float) -> None:
    schedule = SparsitySchedule(0.9, end=10, begin=2, power=power)
    sparsifier = sparsify(PARAMS, schedule, budget)
    compilations = 0

    @jax.jit
    def step(params: Any, state: Any, number: jax.Array) -> Any:
        nonlocal compilations
        compilations += 1
        return sparsifier.apply(params, state, step=number)

    state, live = sparsifier.init(PARAMS), []
    for number in range(14):
        effective, state = step(PARAMS, state, jnp.int32(number))
        counts = {p: int(m.sum()) for p, m in sparsifier.wiring(PARAMS, step=number).items()}
        assert counts == {
            p: int(jnp.sum(effective[p.partition("/")[0]]["kernel"] != 0)) for p in KERNELS
        }
        live.append(sum(counts.values()))
    assert compilations == 1
    size = sum(PARAMS[p.partition("/")[0]]["kernel"].size for p in KERNELS)
    remaining = [1 - min(max(n - 2, 0) / 8, 1) for n in range(14)]
    expected = [size * (1 - 0.9 + 0.9 * fraction**power) for fraction in remaining]
    np.testing.assert_allclose(live, expected, atol=2)
    assert live[:3] == [size] * 3
    final = kept(sparsify(PARAMS, 0.9, budget), PARAMS)
    assert counts == final == kept(sparsifier, PARAMS)
    assert "at the end of the schedule" in str(sparsifier.report(PARAMS))
    assert sparsifier.report(PARAMS, step=0).leaves[1].kept == PARAMS["encoder"]["kernel"].size
    with pytest.raises(ValueError, match="step is None; the SparsitySchedule needs it"):
        sparsifier.apply(PARAMS, state)
    constant = sparsify(PARAMS, 0.9)
    effective, _ = constant.apply(PARAMS, state, step=3, key=KEY)  # both are ignored
    jax.tree.map(np.testing.assert_array_equal, effective, constant.apply(PARAMS, state)[0])


def test_the_end_of_a_schedule_is_exact_in_large_layers() -> None:
    """Float32 cannot represent every integer above 2**24."""
    size = (2**13 + 1) * (2**12 + 1)
    last = edge_budget(size, 0.3)
    schedule = SparsitySchedule(0.3, end=10)
    assert int(annealed_budget(size, last, schedule.remaining(10))) == last
    assert int(annealed_budget(size, last, schedule.remaining(0))) == size


# Which leaves.


def paths(params: Any, **settings: Any) -> list[str]:
    return list(sparsify(params, 0.5, **settings).shapes)


def test_matrices_and_kernels_by_default() -> None:
    params = {
        "attention": {"query": {"kernel": normal(8, 2, 4), "bias": normal(2, 4)}},
        "layer_norm": {"weight": normal(8, 8)},
        "patch_embed": {"kernel": normal(4, 4, 3, 8)},
        "pos_embedding": normal(10, 8),
        "tokens": {"emb": {"weight": normal(20, 8)}},
        "conv": {"kernel": normal(3, 3, 8, 8), "bias": normal(8)},
        "embed": {"embedding": normal(100, 8)},
        "norm": {"scale": normal(1, 1, 8), "bias": normal(8)},
        "steps": jnp.arange(6).reshape(2, 3),
        "temperature": jnp.float32(1.0),
        "to_one": {"kernel": normal(8, 1)},
    }
    assert paths(params) == [
        "attention/query/kernel",
        "conv/kernel",
        "patch_embed/kernel",
        "to_one/kernel",
    ]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, (), ["encoder/kernel", "head/kernel"]),
        (None, "head", ["encoder/kernel"]),
        (None, ["head/kernel"], ["encoder/kernel"]),
        ("head", (), ["head/kernel"]),
        ("head/", (), ["head/kernel"]),
        (["*/kernel"], (), ["encoder/kernel", "head/kernel"]),
        ("head.kernel", (), ["head/kernel"]),
        ("*", (), ["encoder/kernel", "head/kernel"]),
        ("*", ["enc*", "norm"], ["head/kernel"]),
        # A leaf that is dense by default is sparse only if a pattern names it.
        (["head", "*/bias"], "encoder", ["head/bias", "head/kernel"]),
        (["norm/scale", "head"], (), ["head/kernel", "norm/scale"]),
    ],
)
def test_patterns(include: Any, exclude: Any, expected: list[str]) -> None:
    assert paths(PARAMS, include=include, exclude=exclude) == expected


def test_budget_patterns() -> None:
    assert sparsify(PARAMS, budget={"head": 0.5}).last == {"head/kernel": 48}
    assert sparsify(PARAMS, budget={"*": 0.5}, exclude="head").last == {"encoder/kernel": 144}
    sparsifier = sparsify(PARAMS, 0.75, budget={"*kernel": 0.5, "head/kernel": 0.25})
    assert sparsifier.last == {"encoder/kernel": 144, "head/kernel": 72}  # the last one counts
    assert sparsify(PARAMS, 0.75, budget={"head/kernel": 0.5}).last == {
        "encoder/kernel": 72,
        "head/kernel": 48,
    }
    assert sparsify(PARAMS, budget={"norm/scale": 0.5}).last == {"norm/scale": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": "nothing"}, "include: 'nothing': matches no leaf; the paths are"),
        ({"include": ["head", "z*", "x"]}, "include: 'z*', 'x': matches no leaf"),
        (
            {"include": "norm"},
            "include: 'norm': changes nothing (its leaves are dense",
        ),
        ({"include": []}, "no leaf is to be sparse"),
        ({"exclude": "kernel"}, "exclude: 'kernel': matches no leaf"),
        ({"budget": {"tail": 0.5}}, "budget: 'tail': matches no leaf"),
        ({"budget": {"head": 0.5}, "exclude": "head"}, "budget: 'head': changes nothing"),
        ({"budget": {"head": 0.5, "*": 0.1}}, "budget: 'head': changes nothing"),
        ({"budget": "equal"}, "budget is 'equal'; it must be 'uniform', 'erk', 'global'"),
        ({"budget": {"head": 1.5}}, "budget['head'] is 1.5; it must be a number in [0, 1]"),
        ({"sparsity": None}, "sparsity is None"),
        ({"sparsity": 1.2}, "sparsity is 1.2; it must be a number in [0, 1]"),
        ({"sparsity": True}, "sparsity is True; it must be a number"),
        ({"sparsity": -0.1, "budget": "erk"}, "sparsity is -0.1"),
        ({"rule": "magic"}, "rule is 'magic'; it must be one of dnw, random"),
        ({"rule": "5:4"}, "n:m is 5:4"),
        ({"rule": "2:4"}, "sparsity is 0.9; 2:4 fixes it at 0.5"),
        ({"rule": "2:5", "sparsity": None}, "encoder/kernel: axis -2 of (3, 3, 4, 8)"),
        ({"rule": "2:5", "sparsity": None}, "head/kernel: axis -2 of (8, 12)"),
        ({"rule": "2:4", "sparsity": None, "include": "head/bias"}, "head/bias: shape (12,)"),
        ({"rule": "2:4", "sparsity": None, "budget": "erk"}, "budget is 'erk'; NOfM"),
        ({"rule": "2:4", "sparsity": SparsitySchedule(0.9, 5)}, "one sparsity from start to end"),
        ({"rule": "random", "budget": "global"}, "a random wiring, which has no such rank"),
        ({"rule": "l1_anneal"}, "its penalty is a term of the loss"),
        ({"exclude": "*"}, "no leaf is to be sparse"),
        ({"rule": "random", "sparsity": SparsitySchedule(0.9, 5)}, "one sparsity from start"),
        ({"budget": {"head": 0.5}, "sparsity": SparsitySchedule(0.9, 5)}, "gives single leaves"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sparsify(PARAMS, **{"sparsity": 0.9, **settings})
    assert message in str(error.value)
    if "the paths are" in message:
        assert all(path in str(error.value) for path in ("encoder/bias", *KERNELS))


@pytest.mark.parametrize(
    "fields",
    [
        {"final": 1.5, "end": 5},
        {"final": 0.9, "end": 0},
        {"final": 0.9, "end": 5, "begin": 5},
        {"final": 0.9, "end": 5, "begin": -1},
        {"final": 0.9, "end": 5, "initial": -0.1},
        {"final": 0.9, "end": 5, "power": 0},
    ],
)
def test_invalid_schedules(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it must|they need"):
        SparsitySchedule(**fields)


def test_missing_and_unexpected_parameters() -> None:
    with pytest.raises(ValueError, match="params holds no array of floats"):
        sparsify({"step": jnp.int32(0)}, 0.5)
    sparsifier = sparsify(PARAMS, 0.5)
    others = {**PARAMS, "head": {"kernel": normal(8, 10)}}
    with pytest.raises(ValueError, match=r"head/kernel: expected \(8, 12\), found \(8, 10\)"):
        sparsifier.init(others)
    with pytest.raises(ValueError, match=r"head/kernel: expected .* found nothing"):
        sparsifier.init({"encoder": PARAMS["encoder"]})
    with pytest.raises(ValueError, match=r"two leaves are called 'a/b'"):
        sparsify({"a/b": normal(2, 2), "a": {"b": normal(2, 2)}}, 0.5)


WRONG_TYPES = """
import jax.numpy as jnp
import dnw_jax
from dnw_jax.edges import ConstantFanIn

params = {"head": {"kernel": jnp.ones((8, 12))}}
schedule = dnw_jax.SparsitySchedule(0.9, end=5)
good = {"params": params, "sparsity": 0.9}
for bad in (
    {"sparsity": "0.9"},
    {"rule": None},
    {"rule": ConstantFanIn},
    {"include": 3},
    {"exclude": [None]},
    {"budget": {"head": schedule}},
    {"budget": 7},
):
    try:
        dnw_jax.sparsify(**(good | bad))
    except ValueError as error:
        print(str(error).partition(";")[0])
for state in (None, {}, {"x": 1}):
    try:
        dnw_jax.sparsify(params, 0.5, rule="random").apply(params, state)
    except ValueError as error:
        print("state" in str(error))
"""


def run_python(code: str, **variables: str) -> list[str]:
    """Returns the printed lines of a new process, in which no annotation is enforced."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_wrong_types() -> None:
    assert run_python(WRONG_TYPES) == [
        "sparsity is '0.9'",
        "rule is None",
        "rule is <class 'dnw_jax.edges.structured.ConstantFanIn'>",
        "include is 3",
        "exclude is [None]",
        "budget['head'] is SparsitySchedule(final=0.9, end=5, begin=0, initial=0.0, power=3.0)",
        "budget is 7",
        *["True"] * 3,
    ]


@pytest.mark.parametrize("rule", ["2:4", "constant_fan_in"])
def test_attention_has_several_axes_of_inputs_or_outputs(rule: str) -> None:
    params = nnx.to_pure_dict(
        nnx.state(nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)
    )
    with pytest.raises(ValueError, match="query/kernel: several axes of the attention kernel"):
        sparsify(params, 0.5, rule=rule)
    assert len(sparsify(params, 0.5).shapes) == 4


# The report.


def test_report() -> None:
    sparsifier = sparsify(PARAMS, 0.9)
    report = sparsifier.report(PARAMS)
    by_path = {leaf.path: leaf for leaf in report.leaves}
    assert by_path["head/kernel"].kept == edge_budget(96, 0.9)
    assert by_path["head/kernel"].sparsity == pytest.approx(1 - 10 / 96)
    assert (by_path["head/bias"].kept, by_path["head/bias"].sparse) == (12, False)
    assert report.kept == 29 + 10 + 8 + 8 + 12
    lines = str(report).splitlines()
    assert lines[0].split() == ["path", "shape", "kept", "of", "sparsity"]
    assert lines[3].split() == ["head/kernel", "(8,", "12)", "10", "96", "89.58%"]
    assert lines[-1].split() == ["all", "67", "412", "83.74%"]
    assert repr(report) == str(report)
    shapes = jax.eval_shape(lambda: PARAMS)
    assert str(sparsify(shapes, 0.9).report(shapes)) == str(report)
    with pytest.raises(ValueError, match="pass the parameters themselves"):
        sparsify(shapes, 0.9, "global").report(shapes)
    unequal = {"a": normal(4, 4), "c": 9 + normal(4, 4)}
    assert "NOTHING is kept of a" in str(sparsify(unequal, 0.9, "global").report(unequal))


def test_report_counts_the_masks() -> None:
    """One threshold for all leaves, and wirings that the state holds."""
    params = {"a": normal(10, 10), "b": 5 * normal(10, 10, seed=1)}
    report = sparsify(params, 0.5, "global").report(params)
    assert [leaf.kept for leaf in report.leaves] != [50, 50]
    assert report.kept == 100
    for rule in FIXED:
        sparsifier = sparsify(params, 0.75, rule=rule)
        state = sparsifier.init(params, KEY)
        assert [leaf.kept for leaf in sparsifier.report(params, state).leaves] == [25, 25]
        assert [leaf.kept for leaf in sparsifier.report(params).leaves] == [25, 25]


NUMPY = """
import numpy as np
import dnw_jax

params = {"kernel": np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)}
sparsifier = dnw_jax.sparsify(params, 0.99, rule="constant_fan_in")  # one of 16 into each target
effective, _ = sparsifier.apply(params, sparsifier.init(params))
print(np.count_nonzero(effective["kernel"]), sparsifier.report(params).kept)
"""


def test_report_counts_the_masks_of_numpy_arrays() -> None:
    assert run_python(NUMPY) == ["32 32"]


# Any pytree.


class NNXModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def test_nnx() -> None:
    model = NNXModel(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    sparsifier = sparsify(params, 0.9)
    assert list(sparsifier.shapes) == ["conv/kernel", "head/kernel"]
    effective, _ = sparsifier.apply(params, sparsifier.init(params))
    sparse = nnx.merge(graphdef, effective, rest)
    assert int(jnp.sum(sparse.conv.kernel[...] != 0)) == edge_budget(3 * 3 * 3 * 8, 0.9)
    assert sparse(jnp.ones((2, 8, 8, 3))).shape == (2, 10)
    pure = nnx.to_pure_dict(params)
    assert list(sparsify(pure, 0.9).shapes) == list(sparsifier.shapes)
    shapes = jax.eval_shape(lambda: nnx.state(NNXModel(nnx.Rngs(0)), nnx.Param))
    assert sparsify(shapes, 0.9).last == sparsifier.last


def test_linen() -> None:
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = linen.LayerNorm()(linen.Conv(8, (3, 3))(x)).mean((1, 2))
            return linen.Dense(10)(x)

    images = jnp.ones((2, 8, 8, 3))
    variables = Model().init(KEY, images)
    sparsifier = sparsify(variables, 0.9)
    assert list(sparsifier.shapes) == ["params/Conv_0/kernel", "params/Dense_0/kernel"]
    effective, _ = sparsifier.apply(variables, sparsifier.init(variables))
    assert Model().apply(effective, images).shape == (2, 10)


def test_equinox() -> None:
    """Leaves that are functions stay as they are; targets lie along the first axis."""
    model = eqx.nn.MLP(6, 4, 8, 2, key=KEY)
    sparsifier = sparsify(model, 0.75, rule=ConstantFanIn(target_axis=0))
    assert list(sparsifier.shapes) == [f"layers/{i}/weight" for i in range(3)]
    effective, _ = sparsifier.apply(model, sparsifier.init(model))
    assert effective(jnp.ones(6)).shape == (4,)
    assert np.all(np.count_nonzero(effective.layers[1].weight, axis=1) == 2)
    assert effective.activation is model.activation
    conv = eqx.nn.Conv2d(3, 8, 3, key=KEY)  # its bias is [outputs, 1, 1]
    assert list(sparsify(conv, 0.5).shapes) == ["weight"]

    class Attention(eqx.Module):
        query: jax.Array
        value: jax.Array

    attention = Attention(normal(4, 4), normal(4, 4))
    assert list(sparsify(attention, 0.5).shapes) == ["query", "value"]


def test_lists_and_a_single_array() -> None:
    params = [normal(4, 4), (normal(3, 3), None, normal(2))]
    sparsifier = sparsify(params, 0.5)
    assert list(sparsifier.shapes) == ["0", "1/0"]
    effective, _ = sparsifier.apply(params, sparsifier.init(params))
    assert jax.tree.structure(effective) == jax.tree.structure(params)
    assert sparsify(normal(4, 4), 0.5).last == {"": 8}


def test_haiku_names() -> None:
    params = {"net/~/conv": {"w": normal(3, 3, 2, 4), "b": normal(4)}}
    assert list(sparsify(params, 0.5).shapes) == ["net/~/conv/w"]
    assert list(sparsify(params, 0.5, include="net/~/conv/w").shapes) == ["net/~/conv/w"]


# The state.


@pytest.mark.parametrize("rule", ["dnw", "random", "fine_tune"])
def test_the_state_under_jit_vmap_and_in_a_checkpoint(rule: str, tmp_path: Path) -> None:
    sparsifier = sparsify(PARAMS, 0.6, rule=rule)
    state = jax.jit(sparsifier.init)(PARAMS, KEY)
    eager = sparsifier.init(PARAMS, KEY)
    assert jax.tree.structure(state) == jax.tree.structure(eager)
    jax.tree.map(np.testing.assert_array_equal, state, eager)
    assert set(state) == (set() if rule == "dnw" else set(KERNELS))

    _, state = sparsifier.apply(PARAMS, state)
    ocp.save(tmp_path / "state", {"params": PARAMS, "state": state})
    empty = jax.tree.map(jnp.zeros_like, {"params": PARAMS, "state": state})
    restored = ocp.load(tmp_path / "state", empty)["state"]
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert restored.keys() == state.keys()

    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p[::-1]]), PARAMS)
    keys = jax.random.split(KEY, 2)
    states = jax.vmap(sparsifier.init)(several, keys)
    effective, _ = jax.vmap(sparsifier.apply)(several, states)
    for i, key in enumerate(keys):
        single = jax.tree.map(lambda p, i=i: p[i], several)
        alone, _ = sparsifier.apply(single, sparsifier.init(single, key))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), effective, alone)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import dnw_jax

mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
weights = jax.random.normal(jax.random.key(0), (128, 64))
for spec in (P("a"), P(None, "b"), P("a", "b")):
    for rule in ("dnw", "constant_fan_in", "2:4", "random"):
        sharding = {"kernel": NamedSharding(mesh, spec)}
        params = jax.device_put({"kernel": weights}, sharding)
        sparsifier = dnw_jax.sparsify(params, 0.5, rule=rule)
        draws = rule == "random"
        init = jax.jit(sparsifier.init, out_shardings=sharding if draws else None)
        state = init(params, jax.random.key(1))
        apply = jax.jit(lambda p, s: sparsifier.apply(p, s)[0])
        effective = apply(params, state)["kernel"]
        assert effective.sharding.is_equivalent_to(sharding["kernel"], 2), (spec, rule)
        if draws:
            assert state["kernel"].sharding.is_equivalent_to(sharding["kernel"], 2)
        plain = {"kernel": weights}
        expected, _ = sparsifier.apply(plain, sparsifier.init(plain, jax.random.key(1)))
        np.testing.assert_array_equal(effective, expected["kernel"])
        if rule == "dnw":
            assert "all-gather" not in apply.lower(params, state).compile().as_text()
print("done")
"""


@pytest.mark.slow
def test_sharded_parameters_keep_their_sharding() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert run_python(SHARDED, **flags) == ["done"]


def test_static_in_jit_and_forward_mode() -> None:
    sparsifier = sparsify(PARAMS, 0.9)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(sparsifier: Any, params: Any) -> jax.Array:
        effective, _ = sparsifier.apply(params, {})
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(effective))

    gradient = jax.grad(loss, argnums=1)
    # Forward over reverse: the tangent of 2 w passes to every weight.
    _, product = jax.jvp(lambda p: gradient(sparsifier, p), (PARAMS,), (PARAMS,))
    for path, leaves in PARAMS.items():
        for name, leaf in leaves.items():
            np.testing.assert_allclose(product[path][name], 2 * leaf, rtol=1e-6)


# Comparison with sparse layers.


class Dense(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(2, 6, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(6, 8, (3, 3), padding="VALID", rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(x.mean((1, 2)))


class Sparse(Dense):
    def __init__(self, rngs: nnx.Rngs):
        kept = {"sparsity": 0.8, "rngs": rngs}
        self.first = dnw_jax.SparseConv(2, 6, (3, 3), strides=2, **kept)
        self.second = dnw_jax.SparseConv(6, 8, (3, 3), padding="VALID", **kept)
        self.head = dnw_jax.SparseLinear(8, 3, **kept)


def test_ten_steps_equal_those_of_sparse_layers() -> None:
    images, labels = normal(16, 8, 8, 2), jnp.arange(16) % 3
    optimizer = optax.sgd(0.1, momentum=0.9)
    results = []
    for model_class, sparsity in ((Dense, 0.8), (Sparse, None)):
        graphdef, params, rest = nnx.split(model_class(nnx.Rngs(0)), nnx.Param, ...)
        params = nnx.to_pure_dict(params)
        transform = (
            (lambda p: p) if sparsity is None else _applied(sparsify(params, sparsity), params)
        )

        @jax.jit
        def step(params: Any, opt: Any, graphdef=graphdef, rest=rest, transform=transform) -> Any:
            def loss(params: Any) -> jax.Array:
                model = nnx.merge(graphdef, transform(params), rest, copy=True)
                losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
                return losses.mean()

            updates, opt = optimizer.update(jax.grad(loss)(params), opt, params)
            return optax.apply_updates(params, updates), opt

        states = [(params, optimizer.init(params))]
        for _ in range(10):
            states.append(step(*states[-1]))
        results.append([params for params, _ in states])
    for one, other in zip(*results, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
    first, last = results[0][0], results[0][-1]
    changed = [
        np.any(top(a["kernel"], 20) != top(b["kernel"], 20))
        for a, b in zip(first.values(), last.values(), strict=True)
    ]
    assert any(changed)  # edges were swapped on the way
    for before, after in itertools.pairwise(results[0]):
        assert all(map(np.any, jax.tree.leaves(jax.tree.map(jnp.not_equal, before, after))))


def _applied(sparsifier: Any, params: Any) -> Any:
    state = sparsifier.init(params)
    return lambda params: sparsifier.apply(params, state)[0]
