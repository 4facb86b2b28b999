"""How many steps a dispatch makes: measured once, then always the same."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from dnw_jax.step.metrics import Sums
from dnw_jax.train import dispatch
from dnw_jax.train.dispatch import MAX_STEPS, Dispatches, agreed_size, size_within


@pytest.mark.parametrize(
    ("seconds_per_step", "size"), [(0.0, MAX_STEPS), (0.001, MAX_STEPS), (0.5, 4), (0.7, 2), (9, 1)]
)
def test_a_dispatch_fits_its_seconds(seconds_per_step: float, size: int) -> None:
    assert dispatch.SECONDS_PER_DISPATCH <= 3  # Ctrl-C takes effect between dispatches
    assert size_within(2.0, seconds_per_step) == size
    assert agreed_size(seconds_per_step) == size  # of one process


class FakeState(NamedTuple):
    """A training state that knows only how many updates were made."""

    step: int


class FakeTraining:
    """A feed, a program and a clock: the steps of each dispatch take the next of `durations`."""

    reads_ahead = False

    def __init__(self, durations: list[float], reading: float = 0.0) -> None:
        self.now, self.durations, self.reading = 0.0, durations, reading

    def train_batches(self, step: int, count: int) -> Iterator[int]:
        yield count
        self.now += self.reading

    def make_updates(self, state: FakeState, sums: Sums, count: int) -> tuple[FakeState, Sums]:
        self.now += self.durations.pop(0) * count
        return FakeState(state.step + count), Sums(*(value + count for value in sums))

    def dispatch_sizes(self, monkeypatch: pytest.MonkeyPatch, stops: list[int]) -> list[int]:
        """The number of steps of each dispatch, of which each goes up to one of `stops` at most."""
        monkeypatch.setattr(dispatch, "make_updates", self.make_updates)
        feed: Any = self
        self.dispatches, state, step = Dispatches(feed, lambda: self.now), FakeState(0), 0
        sums, sizes = Sums(*jnp.zeros(4)), []
        for stop in stops:
            before = step
            state, sums, step = self.dispatches.advance(state, sums, step, stop)  # type: ignore
            sizes.append(step - before)
        assert (state.step, float(sums.examples)) == (step, step)
        return sizes


def test_the_size_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first step is slow. Later steps become slower or faster: the size stays the same.
    training = FakeTraining([0.5, 0.125, 9.0, 0.001, 0.001])
    assert training.dispatch_sizes(monkeypatch, [1000] * 5) == [1, 4, 16, 16, 16]


def test_a_dispatch_ends_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    training = FakeTraining([0.125] * 4)
    assert training.dispatch_sizes(monkeypatch, [1000, 3, 10, 1000]) == [1, 2, 7, 16]


def test_seconds_and_waiting_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the fake program are ready at once, so that the devices wait while it reads."""
    training = FakeTraining([1.0] * 2, reading=0.25)
    training.dispatch_sizes(monkeypatch, [1, 2])
    assert training.dispatches.seconds == 2.5
    assert training.dispatches.waited == 0.5
    training.dispatches.reset_clock()
    assert (training.dispatches.seconds, training.dispatches.waited) == (0, 0)
