"""The floor of a step: the least time for its arithmetic and memory traffic on this machine.

The floor is the longer of two times: the arithmetic at the machine's best measured rate in matrix
products, and the memory traffic at the measured bandwidth. Only traffic that no fusion avoids
counts. In a training step this is: each array kept for the backward pass, written and read once;
each parameter with its gradient and momentum, read and written once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from dnw_jax.step.metrics import cross_entropy
from dnw_jax.train import TrainState


@dataclass(frozen=True)
class Machine:
    """Measured speed of this machine.

    Attributes:
      flops_per_second: in a float32 matrix product.
      bytes_per_second: reading and writing an array that is larger than the caches.
    """

    flops_per_second: float
    bytes_per_second: float

    @classmethod
    def measured(cls) -> "Machine":
        """Returns the best of ten measurements."""
        # So large that the time to start the program is negligible.
        side = 2048 if jax.default_backend() == "cpu" else 8192
        square, long = jnp.ones((side, side)), jnp.ones(2**26)
        product = _fastest(jax.jit(lambda x: x @ x / side), square)
        # The result reuses the memory of the argument: the system would have to clear fresh pages.
        scale = jax.jit(lambda x: x * 0.5, donate_argnums=0)
        scaled = _fastest(scale, long)
        return cls(2 * side**3 / product, 2 * 4 * 2**26 / scaled)

    def __str__(self) -> str:
        return (
            f"{self.flops_per_second / 1e9:.0f} GFLOP/s in matrix products, "
            f"{self.bytes_per_second / 1e9:.1f} GB/s reading and writing"
        )


def _fastest(program: Callable[..., jax.Array], operand: jax.Array) -> float:
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        operand = jax.block_until_ready(program(operand))  # the result has the operand's shape
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes read and written."""

    flops: float
    bytes: float

    @classmethod
    def of_step(cls, state: TrainState, batch: dict[str, jax.Array]) -> "Work":
        """Returns the work of the forward and backward pass on `batch`.

        Each loop counts once, so the result is too small for continuous time.
        """

        def loss(params: object) -> jax.Array:
            return _loss(state, params, batch, train=True)

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], state.params)
        return cls(
            _flops(jax.grad(loss), state.params), 2 * _bytes(kept) + 6 * _bytes(state.params)
        )

    @classmethod
    def of_evaluation(cls, state: TrainState, batch: dict[str, jax.Array]) -> "Work":
        """Returns the work of a forward pass: it reads parameters and images. Loops count once."""
        flops = _flops(lambda params: _loss(state, params, batch, train=False), state.params)
        return cls(flops, _bytes(state.params) + _bytes(batch))

    def floor(self, machine: Machine) -> float:
        """Returns the least number of seconds that the work takes."""
        return max(self.flops / machine.flops_per_second, self.bytes / machine.bytes_per_second)

    def __str__(self) -> str:
        return f"{self.flops / 1e9:.3g} GFLOP, {self.bytes / 1e9:.2g} GB"


def _loss(state: TrainState, params: object, batch: dict[str, jax.Array], train: bool) -> jax.Array:
    model = nnx.merge(state.graphdef, params, state.variables, copy=True)
    logits = model(batch["image"], train=train, key=jax.random.key(0))
    return jnp.mean(cross_entropy(logits, batch["label"]))


def _flops(function: Callable[..., object], *operands: object) -> float:
    costs = jax.jit(function).lower(*operands).cost_analysis()
    assert costs is not None
    return costs["flops"]


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
