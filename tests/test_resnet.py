"""Sparse ResNets: layers, names, initial weights, cost, and the recipe's optimizer."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from ml_collections import ConfigDict

import dnw_jax
from dnw_jax.edges import RULES, edge_budget
from dnw_jax.models import edge_layers
from dnw_jax.models.resnet import ARCHS, Arch, ResNet
from dnw_jax.step.optimizer import learning_rate_schedule, sgd

CONFIGS = Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.usefixtures("quick_compilation")
IMAGENET, CIFAR10 = CONFIGS / "imagenet_resnet.py", CONFIGS / "cifar10_resnet.py"

# Numbers of parameters in torchvision's documentation, which count a bias in the last layer.
TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


pytestmark = pytest.mark.usefixtures("quick_compilation")


def config_of(path: Path, arguments: str = "", **fields: object) -> ConfigDict:
    texts = {name.replace("__", "."): str(value) for name, value in fields.items()}
    return dnw_jax.load_config(f"{path}:{arguments}" if arguments else path, texts)


def small_resnet(arguments: str = "", **fields: object) -> nnx.Module:
    fields = {"model__width": 0.125, "dataset__num_classes": 7, **fields}
    return dnw_jax.build_model(config_of(IMAGENET, arguments, **fields))


@pytest.mark.parametrize("arch", ARCHS)
def test_numbers_of_parameters_and_layers(arch: str) -> None:
    shapes = jax.eval_shape(
        lambda: nnx.state(
            dnw_jax.build_model(config_of(IMAGENET, f"arch={arch},edges=complete")), nnx.Param
        )
    )
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert size == TORCHVISION[arch] - 1000  # the last layer has no bias
    depth = sum(len(leaf.shape) == 4 for leaf in jax.tree.leaves(shapes))
    shortcuts = sum("downsample" in str(path) for path, _ in leaves_of(shapes)) // 3
    assert depth - shortcuts == int(arch.removeprefix("resnet"))


def leaves_of(tree: object) -> list:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_every_convolution_chooses_edges() -> None:
    model = small_resnet("arch=resnet18,sparsity=0.8")
    wiring = dnw_jax.wiring(model)
    assert {"conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2", "fc"} <= set(
        wiring
    )
    assert len(wiring) == 18 + 3
    for mask in wiring.values():
        assert int(mask.sum()) == edge_budget(mask.size, 0.8)
    assert wiring["conv1"].shape == (7, 7, 3, 8)
    dense_first = dnw_jax.wiring(small_resnet("arch=resnet18,sparsity=0.8,first_layer=dense"))
    assert np.all(dense_first["conv1"])
    assert int(dense_first["fc"].sum()) == edge_budget(64 * 7, 0.8)


def test_weights_start_as_he_normal() -> None:
    params = nnx.to_pure_dict(nnx.state(small_resnet("arch=resnet50", model__width=0.5), nnx.Param))
    for path, array in traverse_util.flatten_dict(params, sep=".").items():
        if array.ndim == 4:
            scaled = np.asarray(array) * math.sqrt(math.prod(array.shape[:3]) / 2)
            assert scaled.std() == pytest.approx(1, abs=5 / math.sqrt(2 * array.size)), path
            if array.size > 10_000:
                assert np.abs(scaled).max() > 3  # not truncated
        else:
            np.testing.assert_array_equal(array, 1.0 if path.endswith("scale") else 0.0)


@pytest.mark.parametrize("arch", [Arch(False, (1, 1, 1, 1)), Arch(True, (1, 2, 1, 1))])
@pytest.mark.parametrize("small_images", [False, True])
def test_shapes_and_strides(arch: Arch, small_images: bool) -> None:
    model = ResNet(
        arch, 3, 5, 0.5, RULES["dnw"], width=0.125, small_images=small_images, rngs=nnx.Rngs(0)
    )
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    logits = nnx.eval_shape(lambda: nnx.clone(model)(images, train=False))
    assert logits.shape == (2, 5)
    stem = nnx.eval_shape(lambda: nnx.clone(model).conv1(images))
    assert stem.shape == (2, 32, 32, 8) if small_images else (2, 16, 16, 8)
    # ResNet v1.5: the 3x3 convolution has the stride.
    block = getattr(model.layer2, "0")
    strided = block.conv2 if arch.bottleneck else block.conv1
    assert strided.strides == 2
    assert strided.kernel_size == (3, 3)
    assert getattr(block.downsample, "0").strides == 2
    first = getattr(model.layer1, "0")
    assert (first.downsample is not None) == arch.bottleneck


@pytest.mark.slow
def test_dropout_draws_in_every_layer() -> None:
    model = small_resnet("arch=resnet18,edges=targeted_dropout")
    assert model.conv1.rule.rho == 0.9  # the sparsity, as in the published code
    half = small_resnet("arch=resnet18,edges=targeted_dropout", model__sparsity=0.5)
    assert half.fc.rule.rho == 0.5
    given = small_resnet("arch=resnet18,edges=targeted_dropout", model__rho=0.7)
    assert given.fc.rule.rho == 0.7
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    with pytest.raises(ValueError, match="pass key="):
        model(images, train=True)
    graphdef, state = nnx.split(model)
    train = jax.jit(lambda key: nnx.merge(graphdef, state, copy=True)(images, train=True, key=key))
    first, second = (np.asarray(train(jax.random.key(seed))) for seed in (0, 1))
    assert np.any(first != second)


def test_bfloat16() -> None:
    model = small_resnet("arch=resnet18", dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda x: nnx.clone(model)(x, train=False), images).dtype == jnp.float32
    assert model.conv1(jnp.ones((1, 8, 8, 3))).dtype == jnp.bfloat16
    assert model.conv1.kernel[...].dtype == jnp.float32


# Costs.


def test_costs_of_the_dense_resnet50() -> None:
    model = dnw_jax.build_model(config_of(IMAGENET, "edges=complete"))
    report = dnw_jax.profile(model, image_size=224)
    assert report.params == TORCHVISION["resnet50"] - 1000
    assert report.macs == 4_089_184_256  # the usual count


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_only_counted_edges_influence_the_logits(arch: str) -> None:
    model = small_resnet(f"arch={arch},sparsity=0.97", model__width=0.0625)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    report = dnw_jax.profile(model, 32)
    rows = {row.name.replace("downsample", "downsample.0"): row for row in report.rows}
    layers = edge_layers(model)
    assert next(iter(rows)) == "conv1"
    assert list(rows)[-1] == "fc"
    assert set(rows) == set(layers)
    real = sum(int(mask.sum()) for mask in dnw_jax.wiring(model).values())
    assert 0 < sum(row.edges or 0 for row in report.rows) < real
    slopes = jax.jit(
        jax.grad(lambda k: jnp.sum(_with_kernels(model, k)(images, train=False) ** 2))
    )({name: layer.kernel[...] for name, layer in layers.items()})
    wiring = dnw_jax.wiring(model)
    for name, slope in slopes.items():
        influential = np.asarray(wiring[name]) & (np.asarray(slope) != 0)
        assert influential.sum() <= rows[name].edges, name


def _with_kernels(model: nnx.Module, kernels: dict[str, jax.Array]) -> nnx.Module:
    graphdef, state = nnx.split(model)
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    for name, kernel in kernels.items():
        flat[(*name.split("."), "kernel")] = kernel
    return nnx.merge(graphdef, traverse_util.unflatten_dict(flat), copy=True)


def test_macs_by_hand() -> None:
    model = dnw_jax.build_model(config_of(CIFAR10, "arch=resnet18,edges=complete,width=0.125"))
    rows = {row.name: row for row in dnw_jax.profile(model, 32).rows}
    assert rows["conv1"].macs == 9 * 3 * 8 * 32**2
    assert rows["layer1.0.conv1"].macs == 9 * 8 * 8 * 32**2
    assert rows["layer2.0.conv1"].macs == 9 * 8 * 16 * 16**2
    assert rows["layer2.0.downsample"].macs == 8 * 16 * 16**2
    assert rows["layer4.1.conv2"].macs == 9 * 64 * 64 * 4**2
    assert rows["fc"].macs == rows["fc"].params == 640
    assert rows["layer1.0.conv1"].params == 9 * 8 * 8 + 2 * 8


# The optimizer of the recipe.


def test_warm_up_and_cosine_by_epoch() -> None:
    """As in the published `lr_cosine_policy`: 5 epochs up, 95 down, constant in an epoch."""
    schedule = learning_rate_schedule(config_of(IMAGENET), 100 * 3, 3)
    rates = [float(schedule(jnp.int32(step))) for step in range(300)]
    for epoch in range(100):
        expected = (
            0.256 * (epoch + 1) / 5
            if epoch < 5
            else 0.256 / 2 * (1 + math.cos(math.pi * (epoch - 5) / 95))
        )
        np.testing.assert_allclose(rates[3 * epoch : 3 * epoch + 3], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "multistep", "exponential"])
def test_warm_up_of_every_schedule(name: str) -> None:
    settings = {"schedule__name": name, "schedule__per_epoch": False, "num_epochs": 10}
    config = config_of(IMAGENET, schedule__warmup_epochs=2, **settings)
    plain = config_of(IMAGENET, schedule__warmup_epochs=0, **settings)
    schedule = learning_rate_schedule(config, 40, 4)
    rates = [float(schedule(jnp.int32(step))) for step in range(40)]
    np.testing.assert_allclose(rates[:8], [0.256 * (t + 1) / 8 for t in range(8)], rtol=1e-6)
    if name in ("cosine", "linear"):  # over the remaining epochs
        after = learning_rate_schedule(plain, 32, 4)
        expected = [float(after(jnp.int32(step))) for step in range(32)]
    else:  # at the same epochs as without a warm-up
        after = learning_rate_schedule(plain, 40, 4)
        expected = [float(after(jnp.int32(step))) for step in range(8, 40)]
    np.testing.assert_allclose(rates[8:], expected, rtol=1e-6, atol=1e-9)


def test_only_norms_called_bn_are_not_decayed() -> None:
    """By name, as in the published code: so the norms of the shortcuts are decayed."""
    config = config_of(IMAGENET, "arch=resnet18", model__width=0.125)
    params = nnx.to_pure_dict(nnx.state(dnw_jax.build_model(config), nnx.Param))
    params = jax.tree.map(jnp.ones_like, params)
    optimizer = sgd(config, optax.constant_schedule(1.0))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for path, update in traverse_util.flatten_dict(updates, sep=".").items():
        expected = 0 if "bn" in path else -config.optimizer.weight_decay
        np.testing.assert_allclose(update, expected, err_msg=path)
    flat = traverse_util.flatten_dict(updates, sep=".")
    assert np.all(flat["layer2.0.downsample.1.scale"] < 0)
    assert np.all(flat["layer2.0.bn1.scale"] == 0)
    config = config_of(IMAGENET, "arch=resnet18", optimizer__no_decay="norm")
    optimizer = sgd(config, optax.constant_schedule(1.0))
    with pytest.raises(dnw_jax.UserError, match="no path of a parameter contains it"):
        optimizer.init(params)
