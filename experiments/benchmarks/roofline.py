"""What a training step must do at least, and what this machine can do in that time.

The floor of a step is the time of its arithmetic at the machine's best measured rate in products,
or of its memory traffic at the measured bandwidth, whichever is longer. The traffic counted is what
no fusion avoids: each array kept for the backward pass written and read once, each parameter with
its gradient and momentum read and written once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from dnw_jax.metrics import cross_entropy
from dnw_jax.train import TrainState


@dataclass(frozen=True)
class Machine:
    """Measured here: float32 products, and reading plus writing an array larger than the caches."""

    flops_per_second: float
    bytes_per_second: float

    @classmethod
    def measured(cls) -> "Machine":
        """The best of ten turns."""
        # Long enough that starting it costs nothing.
        side = 2048 if jax.default_backend() == "cpu" else 8192
        square, long = jnp.ones((side, side)), jnp.ones(2**26)
        product = _fastest(jax.jit(lambda x: x @ x / side), square)
        # Into memory that is there: the system would have to clear fresh pages.
        scale = jax.jit(lambda x: x * 0.5, donate_argnums=0)
        scaled = _fastest(scale, long)
        return cls(2 * side**3 / product, 2 * 4 * 2**26 / scaled)

    def __str__(self) -> str:
        return (
            f"{self.flops_per_second / 1e9:.0f} GFLOP/s in products, "
            f"{self.bytes_per_second / 1e9:.1f} GB/s reading and writing"
        )


def _fastest(program: Callable[..., jax.Array], operand: jax.Array) -> float:
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        operand = jax.block_until_ready(program(operand))  # of the same shape
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Work:
    """What one training step has to do."""

    flops: float
    bytes: float

    @classmethod
    def of_step(cls, state: TrainState, batch: dict[str, jax.Array]) -> "Work":
        """Of forward and backward pass on `batch`. Loops count once: not for continuous time."""

        def loss(params: object) -> jax.Array:
            model = nnx.merge(state.graphdef, params, state.variables, copy=True)
            logits = model(batch["image"], train=True, key=jax.random.key(0))
            return jnp.mean(cross_entropy(logits, batch["label"]))

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], state.params)
        costs = jax.jit(jax.grad(loss)).lower(state.params).cost_analysis()
        assert costs is not None
        return cls(costs["flops"], 2 * _bytes(kept) + 6 * _bytes(state.params))

    def floor(self, machine: Machine) -> float:
        """Seconds that the step takes at least."""
        return max(self.flops / machine.flops_per_second, self.bytes / machine.bytes_per_second)

    def __str__(self) -> str:
        return f"{self.flops / 1e9:.1f} GFLOP, {self.bytes / 1e9:.2f} GB"


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
