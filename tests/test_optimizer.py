"""Schedules against their formulas, SGD against the algorithm in PyTorch's documentation."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from dnw_jax.config import load_config
from dnw_jax.step.optimizer import learning_rate_schedule, sgd

DIGITS = str(Path(__file__).parent.parent / "configs" / "digits.py")
PER_EPOCH = 7


def config_of(**fields: object) -> ConfigDict:
    texts = {name.replace("__", "."): str(value) for name, value in fields.items()}
    return load_config(DIGITS, texts)


def rates(config: ConfigDict, total: int, per_epoch: int = PER_EPOCH) -> np.ndarray:
    """Returns the learning rate of each update of a run."""
    schedule = learning_rate_schedule(config, total, per_epoch)
    return np.array([schedule(jnp.int32(step)) for step in range(total)], np.float64)


# 6 epochs, 42 updates; r = 0.2.
FORMULAS: dict[str, tuple[dict[str, object], Callable[[int], float]]] = {
    "constant": ({}, lambda t: 0.2),
    "linear": ({}, lambda t: 0.2 * (1 - (t + 1) / 42)),
    "cosine": ({}, lambda t: 0.1 * (1 + math.cos(math.pi * (t + 1) / 42))),
    "exponential": ({"schedule__factor": 0.5}, lambda t: 0.2 * 0.5 ** (t // 7)),
    "multistep": (
        {"schedule__factor": 0.3, "schedule__milestones": (0.5, 4)},
        lambda t: 0.2 * 0.3 ** ((t // 7 >= 3) + (t // 7 >= 4)),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_schedule(name: str) -> None:
    fields, formula = FORMULAS[name]
    config = config_of(
        schedule__name=name, optimizer__learning_rate=0.2, num_epochs=6, num_steps=None, **fields
    )
    expected = [formula(t) for t in range(42)]
    np.testing.assert_allclose(rates(config, 42), expected, rtol=1e-5, atol=1e-8)


@settings(max_examples=20)
@given(
    milestones=st.lists(
        st.integers(1, 12) | st.sampled_from([0.1, 0.3, 0.5, 0.65, 0.75, 1.5, 2.25]),
        unique=True,
        max_size=4,
    ),
    num_epochs=st.integers(1, 12),
    per_epoch=st.integers(1, 5),
)
def test_milestones_as_pytorch_counts_epochs(
    milestones: list[float], num_epochs: int, per_epoch: int
) -> None:
    """A milestone within an epoch takes effect at the start of the next epoch."""
    milestones = sorted(milestones)
    config = config_of(
        schedule__name="multistep",
        schedule__milestones=tuple(map(float, milestones)),
        num_epochs=num_epochs,
        num_steps=None,
        optimizer__learning_rate=1.0,
        schedule__factor=0.5,
    )
    epochs = [m * num_epochs if m < 1 else m for m in milestones]
    expected = [
        0.5 ** sum(t // per_epoch >= round(epoch, 9) for epoch in epochs)
        for t in range(num_epochs * per_epoch)
    ]
    np.testing.assert_allclose(
        rates(config, num_epochs * per_epoch, per_epoch), expected, rtol=1e-6
    )


def test_milestones_at_the_end_of_an_epoch_are_not_one_late() -> None:
    # 0.55 * 100 is 55.00000000000001 in floating point.
    config = config_of(
        schedule__name="multistep", schedule__milestones=0.55, num_epochs=100, num_steps=None
    )
    np.testing.assert_allclose(rates(config, 100, per_epoch=1), [0.1] * 55 + [0.01] * 45, rtol=1e-6)


def test_milestones_of_a_run_of_num_steps() -> None:
    config = config_of(schedule__name="multistep", schedule__milestones=(0.5, 0.75), num_steps=10)
    # The run has no whole epochs: milestones after 5 and after 7.5 steps, rounded to even.
    expected = [0.1] * 5 + [0.01] * 3 + [0.001] * 2
    np.testing.assert_allclose(rates(config, 10, per_epoch=98), expected, rtol=1e-6)


def test_milestones_that_fall_on_one_step() -> None:
    config = config_of(schedule__name="multistep", schedule__milestones=(0.5, 0.75), num_steps=2)
    np.testing.assert_allclose(rates(config, 2), [0.1, 0.1 * 0.1], rtol=1e-6)
    config = config_of(
        schedule__name="multistep", schedule__milestones=(0.4, 0.6), num_epochs=1, num_steps=None
    )
    np.testing.assert_allclose(rates(config, PER_EPOCH), [0.1] * PER_EPOCH, rtol=1e-6)


def test_cosine_never_trains_at_the_full_rate_and_ends_at_zero() -> None:
    ours = rates(config_of(schedule__name="cosine"), 42)
    assert ours[0] < 0.1
    assert ours[-1] == pytest.approx(0, abs=1e-9)


def pytorch_sgd(
    weights: np.ndarray,
    gradients: list[np.ndarray],
    rates: list[float],
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> list[np.ndarray]:
    """Returns the weights after each step of the algorithm of torch.optim.SGD, dampening 0."""
    buffer, after = None, []
    for gradient, rate in zip(gradients, rates, strict=True):
        change = gradient + weight_decay * weights
        if momentum != 0:
            buffer = change if buffer is None else momentum * buffer + change
            change = change + momentum * buffer if nesterov else buffer
        weights = weights - rate * change
        after.append(weights)
    return after


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd(momentum: float, weight_decay: float, nesterov: bool) -> None:
    config = config_of(
        optimizer__momentum=momentum,
        optimizer__weight_decay=weight_decay,
        optimizer__nesterov=nesterov,
        schedule__name="cosine",
    )
    rng = np.random.default_rng(0)
    weights = {"kernel": rng.normal(size=(3, 4)), "norm": {"bias": rng.normal(size=5)}}
    gradients = [jax.tree.map(lambda w: rng.normal(size=w.shape), weights) for _ in range(6)]
    steps = list(rates(config, 6))

    optimizer = sgd(config, learning_rate_schedule(config, 6, PER_EPOCH))
    params = jax.tree.map(jnp.float32, weights)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    ours = []
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)
        ours.append(params)

    for path in (("kernel",), ("norm", "bias")):  # every parameter decays, norms too

        def at(tree: dict, path: tuple[str, ...] = path) -> np.ndarray:
            for name in path:
                tree = tree[name]
            return tree

        expected = pytorch_sgd(
            at(weights),
            [at(g) for g in gradients],
            steps,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
        for step, values in enumerate(expected):
            np.testing.assert_allclose(at(ours[step]), values, rtol=1e-5, atol=1e-6)
