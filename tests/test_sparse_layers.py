"""SparseLinear and SparseConv equal Flax's layers, except for the weights that are left out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dnw_jax
from dnw_jax.edges import NOfM, edge_budget, edge_mask
from dnw_jax.models import edge_layers

pytestmark = pytest.mark.usefixtures("quick_compilation")

LAYERS: dict[str, tuple[Any, Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "linear": (dnw_jax.SparseLinear, nnx.Linear, (6, 8), {}, (3, 6)),
    "linear without bias": (dnw_jax.SparseLinear, nnx.Linear, (6, 8), {"use_bias": False}, (6,)),
    "conv": (dnw_jax.SparseConv, nnx.Conv, (4, 8, (3, 3)), {}, (2, 5, 5, 4)),
    "conv with stride": (
        dnw_jax.SparseConv,
        nnx.Conv,
        (4, 8, (3, 3)),
        {"strides": 2, "padding": 1},
        (2, 5, 5, 4),
    ),
    "conv 1d, dilated": (
        dnw_jax.SparseConv,
        nnx.Conv,
        (4, 8, 3),
        {"kernel_dilation": 2, "padding": "VALID"},
        (2, 9, 4),
    ),
    "conv of groups": (
        dnw_jax.SparseConv,
        nnx.Conv,
        (4, 8, (3, 3)),
        {"feature_group_count": 2},
        (5, 5, 4),
    ),
    "conv in bfloat16": (
        dnw_jax.SparseConv,
        nnx.Conv,
        (4, 8, (3, 3)),
        {"dtype": jnp.bfloat16},
        (2, 5, 5, 4),
    ),
}


def normal(*shape: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", LAYERS)
def test_the_result_is_that_of_flax_with_fewer_weights(name: str) -> None:
    sparse_class, dense_class, sizes, options, shape = LAYERS[name]
    sparse = sparse_class(*sizes, sparsity=0.7, rngs=nnx.Rngs(3), **options)
    dense = dense_class(*sizes, rngs=nnx.Rngs(3), **options)
    kernel = dense.kernel[...]
    np.testing.assert_array_equal(sparse.kernel[...], kernel)  # of one seed
    assert sparse.num_edges == edge_budget(kernel.size, 0.7)
    mask = edge_mask(kernel, sparse.num_edges)
    inputs = normal(*shape)
    before = sparse(inputs)
    dense.kernel[...] = jnp.where(mask, kernel, 0)
    np.testing.assert_array_equal(before, dense(inputs))
    assert before.dtype == dense(inputs).dtype
    np.testing.assert_array_equal(sparse.kernel[...], kernel)  # the weights themselves stay
    np.testing.assert_array_equal(sparse(inputs), before)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_every_weight_learns(name: str) -> None:
    sparse_class, dense_class, sizes, options, shape = LAYERS[name]
    sparse = sparse_class(*sizes, sparsity=0.7, rngs=nnx.Rngs(3), **options)
    dense = dense_class(*sizes, rngs=nnx.Rngs(3), **options)
    inputs = normal(*shape)

    def gradients(model: nnx.Module) -> Any:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        return nnx.to_pure_dict(
            jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p, rest, copy=True)(inputs) * 0.5))(
                params
            )
        )

    # The loss is linear in the kernel, so its gradient does not depend on which weights are real.
    ours, flax = gradients(sparse), gradients(dense)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, flax)


def test_in_nnx_transforms() -> None:
    model = dnw_jax.SparseConv(2, 3, (3, 3), sparsity=0.5, rngs=nnx.Rngs(0))
    images = normal(2, 6, 6, 2)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, images), model(images), rtol=1e-5)
    gradient = nnx.grad(lambda m: jnp.sum(m(images) ** 2))(model)
    assert np.all(np.asarray(gradient["kernel"][...]) != 0)


@pytest.mark.parametrize("rule", ["random", "targeted_dropout", "complete", "constant_fan_in"])
def test_rules(rule: str) -> None:
    layer = dnw_jax.SparseLinear(8, 4, sparsity=0.5, rule=rule, rngs=nnx.Rngs(0))
    real = np.asarray(layer.real_edges())
    assert real.sum() == (32 if rule == "complete" else 16)
    assert (layer.state is None) == (rule != "random")
    inputs = normal(3, 8)
    expected = inputs @ jnp.where(real, layer.kernel[...], 0) + layer.bias[...]
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-5, atol=1e-6)
    trained = layer(inputs, train=True, key=jax.random.key(0))
    assert np.array_equal(trained, layer(inputs)) == (rule != "targeted_dropout")


def test_n_of_m_and_invalid_arguments() -> None:
    rngs = nnx.Rngs(0)
    layer = dnw_jax.SparseConv(8, 4, (3, 3), rule="2:4", rngs=rngs)
    assert layer.sparsity == 0.5
    groups = np.asarray(layer.real_edges()).swapaxes(-1, -2).reshape(-1, 4)
    assert np.all(groups.sum(1) == 2)
    with pytest.raises(ValueError, match="sparsity is None"):
        dnw_jax.SparseLinear(8, 4, rngs=rngs)
    with pytest.raises(ValueError, match="rule is 'magic'"):
        dnw_jax.SparseLinear(8, 4, sparsity=0.5, rule="magic", rngs=rngs)
    with pytest.raises(ValueError, match=r"axis -2 of \(8, 4\) is no multiple of 3"):
        dnw_jax.SparseLinear(8, 4, rule=NOfM(1, 3), rngs=rngs)
    with pytest.raises(ValueError, match="mask is given"):
        dnw_jax.SparseConv(8, 4, 3, sparsity=0.5, mask=jnp.ones((3, 8, 4)), rngs=rngs)
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        dnw_jax.SparseLinear(8, 4, sparsity=1.5, rngs=rngs)


@pytest.mark.parametrize("rngs", [nnx.Rngs(params=0), nnx.Rngs(params=0, edges=1), nnx.Rngs(0)])
def test_random_with_any_random_streams(rngs: nnx.Rngs) -> None:
    layer = dnw_jax.SparseLinear(8, 4, sparsity=0.5, rule="random", rngs=rngs)
    assert int(layer.real_edges().sum()) == 16


def test_fine_tune_adopts_trained_weights() -> None:
    layer = dnw_jax.SparseLinear(8, 4, sparsity=0.5, rule="fine_tune", rngs=nnx.Rngs(0))
    layer.kernel[...] = normal(8, 4, seed=7)
    layer.adopt()
    np.testing.assert_array_equal(layer.real_edges(), edge_mask(normal(8, 4, seed=7), 16))


def test_wiring_of_a_model_of_layers() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = dnw_jax.SparseConv(3, 4, (3, 3), sparsity=0.9, rngs=rngs)
            self.head = dnw_jax.SparseLinear(4, 2, sparsity=0.5, rngs=rngs)

    model = Model(nnx.Rngs(0))
    shapes = {name: mask.shape for name, mask in dnw_jax.wiring(model).items()}
    assert shapes == {"first": (3, 3, 3, 4), "head": (4, 2)}
    assert [layer.num_edges for layer in edge_layers(model).values()] == [11, 4]
