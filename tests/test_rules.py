"""The rules: which edges are real, which of them learn, and the state of the rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnw_jax.config.schema import EDGES
from dnw_jax.edges import RULES, edge_budget, edge_mask

pytestmark = pytest.mark.usefixtures("quick_compilation")

WEIGHTS = jax.random.normal(jax.random.key(1), (12, 10))
KEY = jax.random.key(2)
FIXED = ("random", "fine_tune", "lottery_ticket")
DROPOUT = ("targeted_dropout", "targeted_dropout_per_node")
LIVE = {"complete": 120, "l1_anneal": 120}  # at the start, of a budget of 30
EACH_TARGET = ("targeted_dropout_per_node", "constant_fan_in")


def same(ours, expected) -> None:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))


def top(weights, count: int) -> np.ndarray:
    order = np.argsort(-np.abs(np.asarray(weights)), axis=None, kind="stable")
    return np.isin(np.arange(weights.size), order[:count]).reshape(weights.shape)


def test_the_names_of_the_rules() -> None:
    assert tuple(RULES) == EDGES


@pytest.mark.parametrize("name", RULES)
def test_a_rule_masks_what_it_zeroes(name: str) -> None:
    rule = RULES[name]
    state = rule.init(KEY, WEIGHTS, 30)
    mask = rule.mask(WEIGHTS, state, 30)
    assert np.count_nonzero(mask) == LIVE.get(name, 30)
    same(rule(WEIGHTS, state, 30), np.where(mask, WEIGHTS, 0))
    if name not in DROPOUT:
        same(rule(WEIGHTS, state, 30, train=True), np.where(mask, WEIGHTS, 0))
    assert (state is None) == (name not in (*FIXED, "l1_anneal"))
    if name not in ("random", "complete", "l1_anneal", *EACH_TARGET):
        same(mask, top(WEIGHTS, 30))


@pytest.mark.parametrize("name", RULES)
def test_which_edges_learn(name: str) -> None:
    rule = RULES[name]
    state = rule.init(KEY, WEIGHTS, 30)
    slope = jax.random.normal(KEY, WEIGHTS.shape)
    kept, pull = jax.vjp(lambda w: rule(w, state, 30, train=True, key=KEY), WEIGHTS)
    (gradient,) = pull(slope)
    learns = np.asarray(kept) != 0
    if name in ("dnw", "constant_fan_in"):
        learns = np.ones(WEIGHTS.shape, bool)
    same(gradient, np.where(learns, slope, 0))


# Random graphs.


@pytest.mark.parametrize("count", [0, 1, 40, 119, 120])
@pytest.mark.parametrize("fraction", [None, 0.0, 0.5, 1.0])
def test_random_draws_its_budget_of_allowed_edges(count: int, fraction: float | None) -> None:
    for seed in range(4):
        uniform = np.random.default_rng(seed).uniform(size=WEIGHTS.shape)
        forbidden = None if fraction is None else jnp.asarray(uniform < fraction)
        banned = np.zeros(WEIGHTS.shape, bool) if fraction is None else np.asarray(forbidden)
        mask = np.asarray(draw(jax.random.key(seed), count, forbidden))
        assert not np.any(mask & banned)
        assert np.count_nonzero(mask) == min(count, np.count_nonzero(~banned))


@functools.partial(jax.jit, static_argnums=1)
def draw(key: jax.Array, count: int, forbidden: jax.Array | None) -> jax.Array:
    return RULES["random"].init(key, WEIGHTS, count, forbidden)


def test_random_draws_uniformly() -> None:
    forbidden = jnp.arange(120).reshape(12, 10) % 3 == 0
    for banned, allowed in ((None, np.ones((12, 10), bool)), (forbidden, ~np.asarray(forbidden))):
        draws = np.stack([draw(jax.random.key(seed), 20, banned) for seed in range(600)])
        probability = 20 / allowed.sum()
        frequency = draws.mean(0)[allowed]
        # Five standard deviations of a frequency over 600 draws.
        deviation = np.sqrt(probability * (1 - probability) / 600)
        assert np.abs(frequency - probability).max() < 5 * deviation


def test_the_random_graph_stays() -> None:
    rule = RULES["random"]
    state = rule.init(KEY, WEIGHTS, 30)
    np.testing.assert_array_equal(rule.mask(-3 * WEIGHTS[::-1], state, 7), state)
    assert np.any(np.asarray(rule.init(jax.random.key(3), WEIGHTS, 30)) != np.asarray(state))
    np.testing.assert_array_equal(rule.init(KEY, -WEIGHTS, 30), state)


def test_dnw_chooses_again_when_the_weights_change() -> None:
    rule = RULES["dnw"]
    weights = jnp.asarray([1.0, -2.0, 3.0])
    np.testing.assert_array_equal(rule.mask(weights, None, 1), [False, False, True])
    np.testing.assert_array_equal(rule.mask(weights.at[1].set(-4.0), None, 1), [False, True, False])


# Fixed masks of a trained complete graph.


@pytest.mark.parametrize("name", ["fine_tune", "lottery_ticket"])
def test_the_mask_of_a_trained_graph(name: str) -> None:
    rule, trained = RULES[name], WEIGHTS[::-1]
    state = rule.adopt_weights(trained, rule.init(KEY, WEIGHTS, 30), 30)
    same(state, top(trained, 30))
    same(rule.mask(WEIGHTS, state, 30), state)  # whatever the weights become


@pytest.mark.parametrize("name", sorted(set(RULES) - {"fine_tune", "lottery_ticket"}))
def test_other_rules_keep_their_state(name: str) -> None:
    rule = RULES[name]
    state = rule.init(KEY, WEIGHTS, 30)
    assert rule.adopt_weights(WEIGHTS[::-1], state, 30) is state


# Targeted dropout.


@pytest.mark.parametrize("name", DROPOUT)
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_targeted_dropout(name: str, rho: float) -> None:
    """The top edges always carry signal; every other edge is dropped with probability rho."""
    rule = type(RULES[name])(rho=rho)
    real = np.asarray(rule.mask(WEIGHTS, None, 30))
    draw = jax.jit(lambda key: rule(WEIGHTS, None, 30, train=True, key=key))
    draws = np.stack([draw(jax.random.key(seed)) for seed in range(400)])
    assert np.all((draws == 0) | (draws == np.asarray(WEIGHTS)))  # the sign is kept
    carried = (draws != 0).mean(0)
    same(carried[real], 1.0)
    # Five standard deviations of a frequency over 400 draws.
    assert np.abs(carried[~real] - (1 - rho)).max() <= 5 * np.sqrt(rho * (1 - rho) / 400)


@pytest.mark.parametrize("name", DROPOUT)
def test_targeted_dropout_needs_a_key_only_in_training(name: str) -> None:
    RULES[name](WEIGHTS, None, 30)
    with pytest.raises(ValueError, match="pass key="):
        RULES[name](WEIGHTS, None, 30, train=True)


@pytest.mark.parametrize("name", EACH_TARGET)
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.77, 0.949375, 1.0])
@pytest.mark.parametrize("shape", [(12, 10), (7, 3), (3, 2, 2, 5)])
def test_equally_many_edges_for_each_node(
    shape: tuple[int, ...], sparsity: float, name: str
) -> None:
    """The published code drops int(n * sparsity) of n sources; so do these rules."""
    weights = jax.random.normal(KEY, shape)
    num_edges = edge_budget(weights.size, sparsity)
    mask = RULES[name].mask(weights, None, num_edges)
    columns, weights = (np.asarray(a).reshape(-1, shape[-1]) for a in (mask, weights))
    kept = len(columns) - int(len(columns) * sparsity)
    for column, values in zip(columns.T, weights.T, strict=True):
        same(column, top(values, kept))


# L1 and annealing.


def test_annealing_from_all_edges_to_the_budget() -> None:
    rule = type(RULES["l1_anneal"])(l1=0.5, anneal=0.5)
    budget = jax.jit(lambda progress: rule.advance_state(WEIGHTS, None, 30, progress))
    assert [int(budget(p)) for p in (0.0, 0.1, 0.25, 0.499, 0.5, 0.7, 1.0)] == [
        120,
        102,
        75,
        30,
        30,
        30,
        30,
    ]
    same(rule.mask(WEIGHTS, budget(0.25), 30), edge_mask(WEIGHTS, 75))
    np.testing.assert_allclose(rule.penalty(WEIGHTS), 0.5 * np.abs(WEIGHTS).sum(), rtol=1e-6)


def test_the_annealed_budget_is_exact_for_large_graphs() -> None:
    size, num_edges = 2**25 + 1, 2**20 + 1
    rule = RULES["l1_anneal"]

    @jax.jit
    def last_budget() -> jax.Array:
        weights = jnp.zeros(size)  # only its size is used, so no memory is taken
        return rule.advance_state(weights, None, num_edges, 1.0)

    assert int(last_budget()) == num_edges


@pytest.mark.parametrize("name", sorted(set(RULES) - {"l1_anneal"}))
def test_no_other_rule_changes_with_time_or_adds_to_the_loss(name: str) -> None:
    rule = RULES[name]
    state = rule.init(KEY, WEIGHTS, 30)
    assert rule.advance_state(WEIGHTS, state, 30, jnp.float32(0.5)) is state
    assert rule.penalty(WEIGHTS) == 0
