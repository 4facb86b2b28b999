"""The forms of operations that only a TPU runs give the results of the forms for CPU.

The tests replace `lax.platform_dependent`, so that a CPU runs the forms for TPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax
from small_graphs import close, normal

from dnw_jax.edges import RULES
from dnw_jax.models.mobilenet import MobileNetGraphs, Stage
from dnw_jax.ops.depthwise import depthwise_conv3x3
from dnw_jax.ops.norms import batch_norm, instance_norm

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE, NODES = (3, 7, 6, 4), (4,)


def both_forms(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], *arguments: Any
) -> tuple[Any, Any]:
    """Returns the leaves of `function(*arguments)` in the forms for CPU and for TPU."""

    def pick_tpu(*operands: Any, default: Callable[..., Any], **forms: Callable[..., Any]) -> Any:
        return forms.get("tpu", default)(*operands)

    def compute() -> list[jax.Array]:
        jax.clear_caches()  # else JAX remembers the trace with the other form
        return jax.tree.leaves(jax.jit(function)(*arguments))

    for_cpu = compute()
    with monkeypatch.context() as patch:
        patch.setattr(lax, "platform_dependent", pick_tpu)
        for_tpu = compute()
    jax.clear_caches()
    return for_cpu, for_tpu


def with_gradients(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a cotangent and arguments: the result, and each argument's gradient."""

    def run(cotangent: jax.Array, *arguments: jax.Array) -> Any:
        out, pull = jax.vjp(operation, *arguments)
        return out, pull(cotangent.astype(out.dtype))

    return run


OPERATIONS = {
    "depthwise": (depthwise_conv3x3, [(3, 3, 4)], SHAPE),
    "strided depthwise": (
        lambda planes, kernel: depthwise_conv3x3(planes, kernel, 2),
        [(3, 3, 4)],
        (3, 4, 3, 4),
    ),
    "instance norm": (instance_norm, [NODES, NODES], SHAPE),
    "instance norm, ReLU": (lambda *args: instance_norm(*args, True), [NODES, NODES], SHAPE),
    "batch norm": (lambda *args: batch_norm(*args, False)[0], [NODES, NODES], SHAPE),
    "batch norm, ReLU": (lambda *args: batch_norm(*args, True)[0], [NODES, NODES], SHAPE),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: jnp.dtype
) -> None:
    operation, shapes, out_shape = OPERATIONS[name]
    # A mean that is not zero, as in a real state.
    planes = (normal(SHAPE, 0) + 2).astype(dtype)
    others = [normal(shape, 1 + index) for index, shape in enumerate(shapes)]
    if "depthwise" in name:
        others = [kernel.astype(dtype) for kernel in others]
    arguments = (normal(out_shape, 5, dtype), planes, *others)
    for_cpu, for_tpu = both_forms(monkeypatch, with_gradients(operation), *arguments)
    for expected, ours in zip(for_cpu, for_tpu, strict=True):
        assert ours.dtype == expected.dtype
        assert ours.shape == expected.shape
        close(ours, expected, 1e-5 if dtype == jnp.float32 else 2**-6)


def test_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (normal(SHAPE, 0, jnp.bfloat16), jnp.ones(4), jnp.zeros(4))
    for_cpu, for_tpu = both_forms(
        monkeypatch, lambda *args: batch_norm(*args, True)[1:], *arguments
    )
    for expected, ours in zip(for_cpu, for_tpu, strict=True):
        assert ours.dtype == jnp.float32
        close(ours, expected)


def test_the_variance_of_equal_pixels_is_not_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (jnp.full((2, 5, 3, 4), 3.3, jnp.bfloat16), jnp.ones(4), jnp.zeros(4))
    _, (var,) = both_forms(monkeypatch, lambda *args: batch_norm(*args, True)[2], *arguments)
    assert (var >= 0).all()
    close(var, 0, 1e-12)


def test_a_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Stage(4, 8, 1, 1), Stage(8, 8, 2, 2)]
    rngs = nnx.Rngs(0)
    model = MobileNetGraphs(3, 5, 8, 0.5, RULES["dnw"], stages=stages, rngs=rngs)
    graphdef, params, variables = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, images: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params, variables, copy=True)(images, train=True)
        return jnp.sum(jnp.square(logits))

    arguments = (params, normal((6, 8, 8, 3), 3))
    for_cpu, for_tpu = both_forms(monkeypatch, jax.value_and_grad(loss), *arguments)
    for expected, ours in zip(for_cpu, for_tpu, strict=True):
        close(ours, expected, 1e-4)


def test_the_target_picks_the_form() -> None:
    planes = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4), jnp.float32)
    traced = jax.jit(depthwise_conv3x3).trace(planes, kernel)
    grouped = {
        platform: "feature_group_count = 4"
        in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert grouped == {"cpu": False, "tpu": True, "cuda": False}
