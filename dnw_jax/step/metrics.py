"""Losses and exact averages: sums over the examples that count, divided once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Each example's cross-entropy in nats; the target is mixed with the uniform distribution."""
    if label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    one_hot = jnp.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, label_smoothing))


class Sums(NamedTuple):
    """Sums over examples, which add up over batches, steps and devices."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    correct_top5: Float[Array, ""]
    examples: Float[Array, ""]

    @classmethod
    def of(
        cls,
        losses: Float[Array, " batch"],
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"] | None = None,
    ) -> "Sums":
        """The sums of one batch; where `mask` is false the example is padding."""
        weights = jnp.ones_like(losses) if mask is None else mask.astype(losses.dtype)
        rank = _rank(logits, labels)
        # Padding may hold anything: where, because 0 * inf is not 0.
        return cls(
            jnp.sum(jnp.where(weights > 0, losses, 0)),
            jnp.sum(jnp.where(rank < 1, weights, 0)),
            jnp.sum(jnp.where(rank < 5, weights, 0)),
            jnp.sum(weights),
        )

    @classmethod
    def zero(cls, seeds: tuple[int, ...] = ()) -> "Sums":
        """The sums over nothing; with `seeds` (number,) one of each."""
        return cls(*(jnp.zeros(seeds) for _ in cls._fields))

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def averages(self) -> dict[str, float]:
        """`means` on the host, with the seven digits that a float32 knows."""
        return {name: float(f"{float(value):.7g}") for name, value in self.means().items()}

    def means(self) -> dict[str, Float[Array, ""]]:
        """`loss`, `accuracy` and `accuracy_top5` (0..1) over all examples summed."""
        return {
            "loss": self.loss / self.examples,
            "accuracy": self.correct / self.examples,
            "accuracy_top5": self.correct_top5 / self.examples,
        }


def _rank(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """How many classes come before the true one; of equal logits the first comes first."""
    true = jnp.take_along_axis(logits, labels[:, None].astype(jnp.int32), axis=-1)
    first = jnp.arange(logits.shape[-1]) < labels[:, None]
    # Negated, so that a NaN comes before all.
    before = ~(logits <= true) | ((logits == true) & first)
    return jnp.sum(before, axis=-1)


@jax.jit
def edge_churn(
    before: Bool[Array, "*shape"], now: Bool[Array, "*shape"]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Number of real edges now, and the share of them that were not real before."""
    live = jnp.sum(now)
    return live, jnp.sum(now & ~before) / jnp.maximum(live, 1)
