"""Losses, and exact averages: sums over all examples except padding, divided once at the end."""

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
    """Returns the cross-entropy of each example, in nats.

    Args:
      logits: unnormalised log probabilities.
      labels: the true classes, 0..classes-1.
      label_smoothing: weight of the uniform distribution in the targets, in [0, 1).
    """
    if label_smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    one_hot = jnp.eye(logits.shape[-1], dtype=logits.dtype)[labels]
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, label_smoothing))


class Sums(NamedTuple):
    """Sums over examples. They can be added over batches, steps and devices.

    Attributes:
      loss: the sum of the losses.
      correct: examples whose true class has the largest logit.
      correct_top5: examples whose true class is among the five largest logits.
      examples: how many examples there were.
    """

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
        """Returns the sums of one batch; an example whose `mask` is False is padding."""
        weights = jnp.ones_like(losses) if mask is None else mask.astype(losses.dtype)
        rank = _rank(logits, labels)
        # `where`, because padding can hold anything and 0 * inf is not 0.
        return cls(
            jnp.sum(jnp.where(weights > 0, losses, 0)),
            jnp.sum(jnp.where(rank < 1, weights, 0)),
            jnp.sum(jnp.where(rank < 5, weights, 0)),
            jnp.sum(weights),
        )

    @classmethod
    def zero(cls, seeds: tuple[int, ...] = ()) -> "Sums":
        """Returns sums over no examples; `seeds` is the shape of each: () or (number of seeds,)."""
        return cls(*(jnp.zeros(seeds) for _ in cls._fields))

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    def averages(self) -> dict[str, float]:
        """Returns `means` as Python floats, rounded to the seven digits that a float32 holds."""
        return {name: float(f"{float(value):.7g}") for name, value in self.means().items()}

    def means(self) -> dict[str, Float[Array, ""]]:
        """Returns the means over all examples: `loss`; `accuracy`, `accuracy_top5` in [0, 1]."""
        return {
            "loss": self.loss / self.examples,
            "accuracy": self.correct / self.examples,
            "accuracy_top5": self.correct_top5 / self.examples,
        }


def _rank(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """Returns how many classes rank before the true class; equal logits rank by class number."""
    true_logit = jnp.take_along_axis(logits, labels[:, None].astype(jnp.int32), axis=-1)
    has_smaller_number = jnp.arange(logits.shape[-1]) < labels[:, None]
    # `~(<=)` rather than `>`, so that a NaN ranks before every number.
    ranks_before = ~(logits <= true_logit) | ((logits == true_logit) & has_smaller_number)
    return jnp.sum(ranks_before, axis=-1)


@jax.jit
def edge_churn(
    old_mask: Bool[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Returns the number of real edges in `mask`, and the share that is not real in `old_mask`."""
    num_edges = jnp.sum(mask)
    return num_edges, jnp.sum(mask & ~old_mask) / jnp.maximum(num_edges, 1)
