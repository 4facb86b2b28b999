"""The tiny classifiers: every wiring with every rule, initial weights, stem, read-out."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy_forward
import pytest
from flax import nnx, traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import dnw_jax
from dnw_jax.config.schema import MODELS
from dnw_jax.edges import RULES
from dnw_jax.edges.rules import L1Anneal, TargetedDropout, TargetedDropoutPerNode
from dnw_jax.models import edge_layers
from dnw_jax.models.tiny import Stem, central_pixels

DIGITS = Path(__file__).parent.parent / "configs" / "digits.py"
WIRINGS = ("static", "discrete", "continuous")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def small_config(wiring: str = "static", edges: str = "dnw", **overrides: str) -> ConfigDict:
    """A graph of 32 nodes, with 8 inputs and 6 outputs, on images of 16x16 pixels, one channel."""
    fields = {
        "model.num_nodes": "32",
        "model.num_inputs": "8",
        "model.num_outputs": "6",
        "model.depth": "4",
        "model.sparsity": "0.9",
    }
    if edges in ("fine_tune", "lottery_ticket"):
        fields["init_from"] = "a complete run"  # building a model does not read it
    fields |= {name.replace("__", "."): text for name, text in overrides.items()}
    return dnw_jax.load_config(f"{DIGITS}:wiring={wiring},edges={edges}", fields)


def images(size: int = 16, channels: int = 1, batch: int = 2) -> jax.Array:
    return jnp.asarray(numpy_forward.random_planes((batch, size, size, channels), 0), jnp.float32)


def outputs(module: nnx.Module, inputs: jax.Array, train: bool = False) -> jax.Array:
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state: nnx.State, inputs: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(inputs, train=train)

    return run(state, inputs)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every array by its path."""
    pure = nnx.to_pure_dict(nnx.state(model))
    return {path: np.asarray(a) for path, a in traverse_util.flatten_dict(pure, sep=".").items()}


# Every wiring with every rule.


def test_the_settings_allow_every_rule() -> None:
    for name in ("tiny", "mbv1"):
        field = MODELS[name].fields["model.edges"]
        assert field.allowed == "one of " + ", ".join(RULES)


@pytest.mark.parametrize("edges", RULES)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_model(wiring: str, edges: str) -> None:
    model = dnw_jax.build_model(small_config(wiring, edges))
    graphdef, state = nnx.split(model)

    def forward(state: nnx.State) -> jax.Array:
        return nnx.merge(graphdef, state)(images())

    logits = jax.eval_shape(forward, state)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    if wiring == "static" or edges == "dnw":  # the others compile slowly
        assert np.all(np.isfinite(jax.jit(forward)(state)))

    assert dnw_jax.wiring(model).keys() == edge_layers(model).keys() == {"graph"}
    mask, weights = dnw_jax.wiring(model)["graph"], edge_layers(model)["graph"].real_weights()
    assert (mask.shape, mask.dtype) == ((32, 32), bool)
    num_edges = dict.fromkeys(("complete", "l1_anneal"), 32 * 32)
    num_edges |= dict.fromkeys(("targeted_dropout_per_node", "constant_fan_in"), 4 * 32)
    assert np.count_nonzero(mask) == num_edges.get(edges, 103)  # a tenth of 1,024, rounded up
    # The edges of the mask are those that carry signal.
    np.testing.assert_array_equal(weights != 0, mask)


def test_rules_have_the_settings_of_the_config() -> None:
    def rule(edges: str, **settings: str) -> object:
        fields = {f"model__{name}": text for name, text in settings.items()}
        return edge_layers(dnw_jax.build_model(small_config(edges=edges, **fields)))["graph"].rule

    assert rule("targeted_dropout", rho="0.7") == TargetedDropout(rho=0.7)
    assert rule("targeted_dropout_per_node", rho="0.7") == TargetedDropoutPerNode(rho=0.7)
    assert rule("l1_anneal", l1="0.1", anneal="0.2") == L1Anneal(l1=0.1, anneal=0.2)


@settings(max_examples=40, deadline=None)
@given(
    wiring=st.sampled_from(WIRINGS),
    nodes=st.integers(1, 24),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    depth=st.integers(1, 4),
)
def test_every_allowed_size_can_be_built(
    wiring: str, nodes: int, inputs: int, outputs: int, depth: int
) -> None:
    sizes = {"num_nodes": nodes, "num_inputs": inputs, "num_outputs": outputs, "depth": depth}
    try:
        config = small_config(wiring, **{f"model__{k}": str(v) for k, v in sizes.items()})
    except dnw_jax.UserError:
        return
    logits = nnx.eval_shape(lambda: dnw_jax.build_model(config)(images()))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_forty_one_thousand_live_parameters(wiring: str) -> None:
    config = dnw_jax.load_config(str(DIGITS.with_name("cifar10_tiny.py")), {"model.wiring": wiring})
    model = nnx.eval_shape(lambda: dnw_jax.build_model(config))
    trained = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    size = sum(leaf.size for leaf in jax.tree.leaves(trained))
    # Stem and read-out: 448 + 32 + 160 + 544 + 64 + 1010; nodes: kernels and norms; 32000 edges.
    assert size - 640_000 + 32_000 == 2_258 + 800 * (9 + 2) + 32_000
    assert len(jax.tree.leaves(trained)) == 16


# Initial weights: PyTorch's default.


def test_initial_weights() -> None:
    config = small_config(model__num_nodes="248", model__num_inputs="32", model__num_outputs="40")
    initial = arrays(dnw_jax.build_model(config))
    fan_in = {
        "stem.conv.kernel": 9,
        "stem.conv.bias": 9,
        "stem.depthwise_kernel": 9,
        "stem.depthwise_bias": 9,
        "stem.mix.kernel": 16,
        "stem.mix.bias": 16,
        "graph.nodes.kernel": 9,
        "graph.edges.weight": 248,
        "head.kernel": 40,
        "head.bias": 40,
    }
    for name, fan in fan_in.items():
        values, bound = initial.pop(name), fan**-0.5
        assert values.dtype == np.float32
        assert 0.5 * bound < np.abs(values).max() <= bound, name
        # Uniform: mean 0 and variance bound^2 / 3, within five standard deviations.
        assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size), name
        square = np.mean(values**2) * 3 / bound**2
        assert abs(square - 1) < 5 * np.sqrt(0.8 / values.size), name
    ones = {"stem.conv_norm.scale", "stem.mix_norm.scale", "graph.nodes.scale"}
    ones |= {"stem.conv_norm.var", "stem.mix_norm.var"}
    zeros = {"stem.conv_norm.bias", "stem.mix_norm.bias", "graph.nodes.bias"}
    zeros |= {"stem.conv_norm.mean", "stem.mix_norm.mean"}
    assert initial.keys() == ones | zeros
    for name, values in initial.items():
        np.testing.assert_array_equal(values, float(name in ones), name)


def test_fan_in_counts_the_channels() -> None:
    config = small_config(model__num_inputs="64", model__num_nodes="100", dataset__num_channels="3")
    kernel = dnw_jax.build_model(config).stem.conv.kernel[...]
    bound = 27**-0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize("edges", ["dnw", "random"])
def test_the_seed_determines_the_initial_weights(edges: str) -> None:
    first, same_seed, other_seed = (
        arrays(dnw_jax.build_model(small_config(edges=edges, seed=seed))) for seed in "112"
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, same_seed[name], name)
        drawn = not name.endswith(("scale", "mean", "var")) and "norm" not in name
        if drawn and name != "graph.nodes.bias":
            assert np.any(values != other_seed[name]), name


# The stem.


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (16, 1), (13, 2)])
def test_stem(size: int, channels: int, train: bool) -> None:
    stem = Stem(channels, 8, rngs=nnx.Rngs(0))
    # Norms other than the initial ones, which do nothing.
    rng = np.random.default_rng(1)
    for norm in (stem.conv_norm, stem.mix_norm):
        for values in (norm.scale, norm.bias, norm.mean, norm.var):
            values[...] = jnp.asarray(rng.uniform(0.5, 1.5, values.shape), jnp.float32)
    params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(stem)))
    batch = images(size, channels)
    expected = numpy_forward.stem(np.float64(batch), params, train)
    ours = outputs(stem, batch, train)
    assert ours.shape == (2, -(-size // 4), -(-size // 4), 8)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_running_statistics_keep_nine_tenths() -> None:
    stem = Stem(1, 8, rngs=nnx.Rngs(0))
    batch = images(32, batch=16)
    convolved = np.asarray(stem.conv(batch), np.float64)
    stem(batch, train=True)
    mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
    np.testing.assert_allclose(stem.conv_norm.mean[...], 0.1 * mean, rtol=1e-3, atol=1e-6)
    # To a thousandth, because PyTorch corrects the variance by n / (n - 1), n = 4096.
    np.testing.assert_allclose(stem.conv_norm.var[...], 0.9 + 0.1 * variance, rtol=1e-3)
    before = arrays(stem)
    stem(batch, train=False)
    for name, values in arrays(stem).items():
        np.testing.assert_array_equal(values, before[name], name)


def test_in_evaluation_images_do_not_influence_each_other() -> None:
    model = dnw_jax.build_model(small_config())
    both, first = outputs(model, images()), outputs(model, images()[:1])
    np.testing.assert_allclose(both[:1], first, rtol=1e-5, atol=1e-6)
    assert np.abs(outputs(model, images(), train=True) - both).max() > 1e-3


# The read-out.


@pytest.mark.parametrize(("size", "pixels"), [(8, (2, 3)), (7, (1, 2)), (4, (0, 1)), (2, (0, 1))])
def test_central_pixels(size: int, pixels: tuple[int, int]) -> None:
    rows, columns = central_pixels(size, size + 4)
    assert tuple(range(size))[rows] == pixels
    assert tuple(range(size + 4))[columns] == tuple(range(size // 2, size // 2 + 2))


@pytest.mark.parametrize("size", [28, 16])
def test_logits_are_the_linear_layer_of_the_mean_central_state(size: int) -> None:
    model = dnw_jax.build_model(small_config(dataset__image_size=str(size)))
    planes = outputs(model.stem, images(size))
    states = np.asarray(outputs(model.graph, planes), np.float64)
    low = max(size // 8 - 2, 0)
    read = states[:, low : low + 2, low : low + 2].mean((1, 2))
    expected = read @ np.float64(model.head.kernel[...]) + np.float64(model.head.bias[...])
    np.testing.assert_allclose(outputs(model, images(size)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_bfloat16(wiring: str) -> None:
    exact, coarse = (
        dnw_jax.build_model(small_config(wiring, dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    for name, values in arrays(coarse).items():  # parameters and statistics stay float32
        np.testing.assert_array_equal(values, arrays(exact)[name])
    ours, expected = outputs(coarse, images(32)), outputs(exact, images(32))
    assert ours.dtype == jnp.float32
    error = np.abs(ours - expected).max() / np.abs(expected).max()
    # In continuous time the solver's steps differ, too: up to 0.22 over seeds.
    assert 1e-5 < error < (0.5 if wiring == "continuous" else 0.1)
    assert outputs(coarse.stem, images(32).astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_with_bfloat16_the_head_computes_in_float32() -> None:
    model = dnw_jax.build_model(small_config("discrete", dtype="bfloat16"))
    graphdef, state = nnx.split(model)

    # Every state is rounded to bfloat16; by default XLA may keep more bits.
    @functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    def run(state: nnx.State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, state)
        return model.graph(model.stem(images.astype(jnp.bfloat16))), model(images)

    states, ours = run(state, images(32))
    assert states.dtype == jnp.bfloat16
    read = np.float64(states)[:, 2:4, 2:4].mean((1, 2))
    expected = read @ np.float64(model.head.kernel[...]) + np.float64(model.head.bias[...])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
