"""Every public object works under every JAX transform, as an argument and captured by a closure.

Most tests only trace: a transform that fails does so in the trace.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import TraceContextError
from jax import export, lax

import dnw_jax
from dnw_jax.edges import RULES, NOfM, Rule, sparsify
from dnw_jax.graphs.batch_norm import BatchNorm
from dnw_jax.models import build_model

CONFIGS = Path(__file__).parent.parent / "configs"
KEY = jax.random.key(0)
ALL_RULES = {**RULES, "2:4": NOfM(2, 4)}


class Case(NamedTuple):
    """A scalar `function(value, inputs)`, whose `value` can be captured or passed."""

    function: Callable[[Any, Any], jax.Array]
    value: Any
    inputs: Any  # an array of floats


# The transforms. Each traces `function(*args)`; the last argument is an array of floats.


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def stacked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), tree)


def gradient(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """With respect to all arguments; masks and counts among them have no gradient."""
    return jax.grad(function, argnums=tuple(range(number)), allow_int=True)


def trace_jit(function: Callable[..., Any], *args: Any) -> None:
    jax.jit(function).trace(*args)


def trace_grad(function: Callable[..., Any], *args: Any) -> None:
    jax.eval_shape(gradient(function, len(args)), *args)


def trace_vmap(function: Callable[..., Any], *args: Any) -> None:
    jax.eval_shape(jax.vmap(function), *map(stacked, args))


def trace_scan(function: Callable[..., Any], *args: Any) -> None:
    def total(*args: Any) -> jax.Array:
        *others, inputs = args
        return lax.scan(lambda sum_, x: (sum_ + function(*others, x), None), 0.0, inputs)[0]

    *others, inputs = args
    jax.eval_shape(total, *others, stacked(inputs))


def trace_checkpoint(function: Callable[..., Any], *args: Any) -> None:
    jax.eval_shape(gradient(jax.checkpoint(function), len(args)), *args)


def trace_eval_shape(function: Callable[..., Any], *args: Any) -> None:
    jax.eval_shape(function, *args)


def trace_export(function: Callable[..., Any], *args: Any) -> None:
    export.export(jax.jit(function))(*args)


TRANSFORMS = {
    "jit": trace_jit,
    "grad": trace_grad,
    "vmap": trace_vmap,
    "scan": trace_scan,
    "checkpoint": trace_checkpoint,
    "eval_shape": trace_eval_shape,
    "export": trace_export,
}


def check(case: Case, transform: str, way: str) -> None:
    trace, inputs = TRANSFORMS[transform], abstract(case.inputs)
    if way == "argument":
        trace(case.function, abstract(case.value), inputs)
    else:
        trace(lambda inputs: case.function(case.value, inputs), inputs)


every_transform = pytest.mark.parametrize("transform", TRANSFORMS)
both_ways = pytest.mark.parametrize("way", ["argument", "closure"])


# Rules and sparsify.


def rule_case(rule: Rule) -> Case:
    weights = jnp.zeros((8, 8))
    state = rule.init(KEY, weights, 16)

    def loss(value: Any, inputs: jax.Array) -> jax.Array:
        weights, state = value
        state = rule.adopt_weights(weights, state, 16)
        state = rule.advance_state(weights, state, 16, 0.5)
        outputs = inputs @ rule(weights, state, 16, train=True, key=KEY)
        return jnp.sum(outputs**2) + rule.penalty(weights)

    return Case(loss, (weights, state), jnp.zeros((2, 8)))


def sparsify_case(rule: str | Rule, budget: str = "uniform") -> Case:
    params = {"first": jnp.zeros((8, 8)), "second": {"kernel": jnp.zeros((8, 4))}}
    sparsifier = sparsify(params, 0.5, budget, rule)

    def loss(value: Any, inputs: jax.Array) -> jax.Array:
        effective, state = sparsifier.apply(*value, key=KEY, progress=0.5)
        outputs = inputs @ effective["first"] @ effective["second"]["kernel"]
        return jnp.sum(outputs**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(state))

    return Case(loss, (params, sparsifier.init(params, KEY)), jnp.zeros((2, 8)))


@pytest.mark.parametrize("rule", ALL_RULES)
@every_transform
@both_ways
def test_rules(rule: str, transform: str, way: str) -> None:
    check(rule_case(ALL_RULES[rule]), transform, way)


@pytest.mark.parametrize("rule", sorted({*ALL_RULES} - {"l1_anneal"}))
@every_transform
@both_ways
def test_sparsify(rule: str, transform: str, way: str) -> None:
    check(sparsify_case(rule), transform, way)


@every_transform
@both_ways
def test_sparsify_with_one_threshold(transform: str, way: str) -> None:
    check(sparsify_case("dnw", "global"), transform, way)


@pytest.mark.parametrize("rule", ["random", "dnw"])
def test_init_and_wiring(rule: str) -> None:
    params = {"kernel": jnp.zeros((8, 8))}
    sparsifier = sparsify(params, 0.5, rule=rule)

    def kept(params: Any, key: jax.Array) -> jax.Array:
        return jnp.sum(sparsifier.wiring(params, sparsifier.init(params, key))["kernel"])

    compiled = jax.jit(jax.vmap(kept, in_axes=(None, 0)))
    assert compiled(params, jax.random.split(KEY, 3)).tolist() == [32, 32, 32]


# Layers.

LAYERS: dict[str, tuple[Callable[..., nnx.Module], tuple[int, ...]]] = {
    "SparseLinear": (lambda **options: dnw_jax.SparseLinear(8, 4, **options), (2, 8)),
    "SparseConv": (lambda **options: dnw_jax.SparseConv(8, 4, (3, 3), **options), (2, 5, 5, 8)),
}


def layer_loss(layer: nnx.Module, inputs: jax.Array) -> jax.Array:
    return jnp.sum(layer(inputs, train=True, key=KEY) ** 2)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", ["dnw", "random", "targeted_dropout"])
@every_transform
@both_ways
def test_layers(layer: str, rule: str, transform: str, way: str) -> None:
    build, shape = LAYERS[layer]
    module = build(sparsity=0.5, rule=rule, rngs=nnx.Rngs(0))
    check(Case(layer_loss, module, jnp.zeros(shape)), transform, way)


def test_a_captured_layer_gives_the_same_numbers() -> None:
    layer = dnw_jax.SparseLinear(8, 4, sparsity=0.5, rngs=nnx.Rngs(0))
    inputs = jax.random.normal(KEY, (6, 8))
    outputs = layer(inputs)
    np.testing.assert_allclose(jax.jit(jax.vmap(layer))(inputs), outputs, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, layer(row)), None, inputs)
    np.testing.assert_allclose(scanned, outputs, rtol=1e-6)


# The smallest model of each family.

TINY = {
    "model.num_nodes": "12",
    "model.num_inputs": "4",
    "model.num_outputs": "3",
    "model.depth": "3",
    "model.sparsity": "0.5",
}
MBV1 = {"model.width": "0.03125"}
MODELS: dict[str, tuple[str, dict[str, str], tuple[int, ...]]] = {
    "static": ("digits.py:wiring=static", TINY, (2, 16, 16, 1)),
    "discrete": ("digits.py:wiring=discrete", TINY, (2, 16, 16, 1)),
    "continuous": ("digits.py:wiring=continuous", TINY, (2, 16, 16, 1)),
    "mbv1": ("cifar10_mbv1.py", MBV1, (2, 32, 32, 3)),
    "mbv1, small": ("cifar10_mbv1.py", {**MBV1, "model.small": "true"}, (2, 32, 32, 3)),
    "mobilenet": ("cifar10_mobilenet.py:width=0.03125", {}, (2, 32, 32, 3)),
    "resnet18": ("cifar10_resnet.py:width=0.0625", {}, (2, 32, 32, 3)),
}


SMALLEST = ("static", "discrete", "continuous")  # the others take 10 s each to trace


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in MODELS
    ],
)
def built(request: pytest.FixtureRequest) -> tuple[nnx.Module, jax.ShapeDtypeStruct]:
    """A model whose parameters are zero, and the shape of its images."""
    name, fields, shape = MODELS[request.param]
    config = dnw_jax.load_config(f"{CONFIGS}/{name}", fields)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_model(config)))
    zeros = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), state)
    return nnx.merge(graphdef, zeros), jax.ShapeDtypeStruct(shape, jnp.float32)


@every_transform
@both_ways
def test_models_in_evaluation(
    built: tuple[nnx.Module, jax.ShapeDtypeStruct], transform: str, way: str
) -> None:
    model, images = built

    def energy(model: nnx.Module, images: jax.Array) -> jax.Array:
        return jnp.sum(model(images, train=False) ** 2)

    check(Case(energy, model, images), transform, way)


@pytest.mark.parametrize(
    "built",
    ["static", pytest.param("mbv1, small", marks=pytest.mark.slow)],
    indirect=True,
)
@every_transform
def test_models_in_training(built: tuple[nnx.Module, jax.ShapeDtypeStruct], transform: str) -> None:
    """The arrays are the argument, as Flax recommends for functions that change a model."""
    model, images = built
    graphdef, state = nnx.split(model)

    def energy(state: nnx.State, images: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state, copy=True)
        return jnp.sum(model(images, train=True, key=KEY) ** 2)

    check(Case(energy, state, images), transform, "argument")


@pytest.mark.parametrize("norm", [nnx.BatchNorm(4, rngs=nnx.Rngs(0)), BatchNorm(4)], ids=type)
def test_a_captured_norm_cannot_train(norm: nnx.Module) -> None:
    """Training changes running statistics, and Flax refuses to change a captured module.

    So it is with Flax's norm and with the norm of this package.
    """
    option = {"use_running_average": False} if isinstance(norm, nnx.BatchNorm) else {"train": True}
    with pytest.raises(TraceContextError):
        jax.eval_shape(lambda planes: norm(planes, **option), jnp.zeros((2, 3, 3, 4)))
