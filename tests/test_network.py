"""The lowered network: the logits of every model in NumPy, and what its operations promise."""

import dataclasses
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_case import CASES, TINY, Case

import dnw_jax
from dnw_jax.deploy.liveness import liveness
from dnw_jax.deploy.network import INPUT, Network, lower
from dnw_jax.deploy.operations import Add, Operation, Relu, Size
from dnw_jax.deploy.products import Edges, Product
from dnw_jax.edges import RULES, Rule
from dnw_jax.models.mobilenet import MobileNetGraphs, Stage
from dnw_jax.models.resnet import Arch, ResNet

CONFIGS = Path(__file__).parent.parent / "configs"

pytestmark = pytest.mark.usefixtures("quick_compilation")


def tiny(wiring: str = "static", edges: str = "dnw", **fields: object) -> nnx.Module:
    small = {"model.num_nodes": 26, "model.num_inputs": 5, "model.num_outputs": 4, "model.depth": 4}
    small["model.sparsity"] = 0.7
    settings = small | {name.replace("__", "."): value for name, value in fields.items()}
    path = f"{CONFIGS}/cifar10_tiny.py:wiring={wiring},edges={edges}"
    texts = {name: str(value) for name, value in settings.items()}
    return dnw_jax.build_model(dnw_jax.load_config(path, texts))


@dataclasses.dataclass(frozen=True)
class Scattered(Rule):
    """Keeps a quarter of the edges, whatever their weights; compiles faster than a selection."""

    def mask(self, weights: jax.Array, state: object, num_edges: object) -> jax.Array:
        del state, num_edges
        kept = np.random.default_rng(weights.size).uniform(size=weights.shape) < 0.25
        return jnp.asarray(kept)


def chain(image_size: int, *, small: bool = False, rule: Rule = RULES["dnw"]) -> nnx.Module:
    stages = [Stage(4, 6, 1, 1), Stage(6, 6, 2, 2), Stage(6, 6, 2, 3)]
    return MobileNetGraphs(
        3, 5, image_size, 0.5, rule, small=small, stages=stages, rngs=nnx.Rngs(0)
    )


def mobilenet(**fields: object) -> nnx.Module:
    texts = {name.replace("__", "."): str(value) for name, value in fields.items()}
    return dnw_jax.build_model(dnw_jax.load_config(f"{CONFIGS}/cifar10_mobilenet.py", texts))


def resnet(arch: Arch, **options: object) -> nnx.Module:
    return ResNet(arch, 3, 5, 0.6, Scattered(), width=0.0625, rngs=nnx.Rngs(0), **options)


BASIC, BOTTLENECK = Arch(False, (1, 2, 1, 1)), Arch(True, (1, 1, 1, 1))
# What builds the model, and height and width of the images.
MODELS: dict[str, tuple[Callable[[], nnx.Module], int]] = {
    "static": (tiny, 32),
    "static, odd size": (tiny, 19),
    "static, four pixels": (tiny, 5),
    "static, other channels and classes": (
        lambda: tiny(dataset__num_channels=1, dataset__num_classes=3),
        16,
    ),
    "discrete": (lambda: tiny("discrete"), 32),
    "discrete, one step": (lambda: tiny("discrete", model__depth=1), 13),
    "chain": (lambda: chain(17), 17),
    "chain, halving stem": (lambda: chain(75), 75),
    "chain, sparse head": (lambda: chain(32, small=True), 32),
    "chain, complete": (lambda: chain(16, small=True, rule=RULES["complete"]), 16),
    "mobilenet": (lambda: mobilenet(model__width=0.0625), 33),
    "mobilenet, halving stem": (
        lambda: mobilenet(model__width=0.125, dataset__image_size=80, dataset__num_classes=4),
        80,
    ),
    "resnet": (lambda: resnet(BASIC), 65),
    "resnet, bottlenecks": (lambda: resnet(BOTTLENECK), 64),
    "resnet, small images": (lambda: resnet(BASIC, small_images=True), 21),
    "resnet, dense first": (lambda: resnet(BASIC, dense_first=True), 40),
} | {
    f"static, {edges}": (lambda edges=edges: tiny(edges=edges, init_from="a run"), 16)
    for edges in ("random", "complete", "constant_fan_in", "l1_anneal", "fine_tune")
}


def as_trained(model: nnx.Module) -> nnx.Module:
    """Gives norms, biases and kernels values that training could leave.

    No norm or bias is 0 or 1, and signals keep their size from layer to layer; PyTorch's
    initialisation shrinks them.
    """
    rng = np.random.default_rng(0)
    gain = 1 if isinstance(model, ResNet) else 2.5
    graphdef, state = nnx.split(model)

    def moved(leaf: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.float32:
            return leaf  # what a rule keeps
        changed = leaf * gain if leaf.ndim > 1 else leaf + rng.uniform(-0.4, 0.4, leaf.shape)
        return changed.astype(leaf.dtype)

    return nnx.merge(graphdef, jax.tree.map(moved, state), copy=True)


def images_of(network: Network, batch: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(batch, *network.sizes[INPUT])).astype(np.float32)


def lowered(name: str) -> tuple[nnx.Module, Network]:
    build, image_size = MODELS[name]
    model = as_trained(build())
    return model, lower(model, image_size)


def assert_close(ours: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model(name: str) -> None:
    model, network = lowered(name)
    images = images_of(network)
    graphdef, state = nnx.split(model)
    logits = jax.jit(lambda x: nnx.merge(graphdef, state, copy=True)(x, train=False))(images)
    assert network.is_callable
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits).max()  # the images matter
    assert network(images).dtype == np.float32
    assert_close(network(images), np.asarray(logits))


SLOW = set(CASES) - set(TINY) - {"mobilenetv1_x25_cifar"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in CASES
        if name != "continuous_dnw"
    ],
)
def test_golden_logits(name: str) -> None:
    """The published networks with trained running statistics: the published code's logits."""
    case = Case(name)
    images = case.batch(0)["image"]
    logits = lower(case.model, images.shape[1])(images)
    assert_close(logits, case.arrays["logits_eval"])
    assert_close(logits, case.logits_of(case.state, train=False))


@pytest.mark.parametrize("name", MODELS)
def test_what_the_operations_promise(name: str) -> None:
    _, network = lowered(name)
    values = {INPUT: images_of(network, batch=1)}
    for operation in network.operations:
        assert operation.output not in values, "computed twice"
        value = operation(*(values[name] for name in operation.inputs))
        assert Size(*value.shape[1:]) == network.sizes[operation.output]
        values[operation.output] = value
        assert value.dtype == np.float32
        if operation.nodes is not None:
            assert len(operation.nodes) == value.shape[-1]
        if isinstance(operation, Product) and operation.mask is not None:
            assert not np.any(operation.weights[~operation.mask])
        if isinstance(operation, Edges):
            assert len(operation.sources) == network.sizes[operation.inputs[0]].channels
            assert network.wirings[operation.part].mask.size >= operation.weights.size
    assert values.keys() == network.sizes.keys()
    np.testing.assert_array_equal(values[network.output][:, 0, 0], network(values[INPUT]))
    arrays = [value for op in network.operations for value in vars(op).values()]
    kinds = {array.dtype for array in arrays if isinstance(array, np.ndarray)}
    assert kinds <= {np.dtype(np.float32), np.dtype(bool)}


def test_parts_are_named_as_in_the_model() -> None:
    _, network = lowered("chain")
    assert list(network.parts) == ["stem", "graph_0", "graph_1", "graph_2", "norm", "head"]
    assert list(network.wirings) == ["graph_0", "graph_1", "graph_2"]
    graph = network.wirings["graph_1"]
    assert (graph.sources, graph.targets) == (range(12), range(6, 18))
    _, network = lowered("resnet, bottlenecks")
    assert {"conv1", "layer1.0.conv3", "layer2.0.downsample", "fc"} < set(network.parts)


def test_a_network_runs_without_jax(tmp_path: Path) -> None:
    _, network = lowered("chain, sparse head")
    images = images_of(network)
    (tmp_path / "network.pickle").write_bytes(pickle.dumps((network, images)))
    code = (
        "import sys, pickle, numpy\n"
        "sys.modules['jax'] = sys.modules['flax'] = None\n"
        "network, images = pickle.load(open(sys.argv[1], 'rb'))\n"
        "numpy.save(sys.argv[2], network(images))\n"
    )
    paths = [str(tmp_path / "network.pickle"), str(tmp_path / "logits.npy")]
    root = CONFIGS.parent
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=root)
    np.testing.assert_array_equal(np.load(paths[1]), network(images))


def test_continuous_time_is_counted_but_not_called() -> None:
    model = tiny("continuous")
    network = lower(model, 32)
    assert not network.is_callable
    with pytest.raises(dnw_jax.UserError, match=r"continuous time.*call the model itself"):
        network(images_of(network))
    edges = [operation for operation in network.operations if isinstance(operation, Edges)]
    assert len(edges) == 1  # one evaluation of the field
    np.testing.assert_array_equal(edges[0].mask, dnw_jax.wiring(model)["graph"])
    assert dnw_jax.profile(network).rows == dnw_jax.profile(model, 32).rows


def test_later_changes_of_the_model_have_no_effect() -> None:
    model, network = lowered("static")
    images = images_of(network)
    before = network(images)
    model.head.bias[...] += 1
    np.testing.assert_array_equal(network(images), before)


def test_a_bfloat16_model_is_lowered_to_float32() -> None:
    half, single = tiny(dtype="bfloat16"), tiny()
    networks = lower(half, 32), lower(single, 32)
    images = images_of(networks[0])
    np.testing.assert_array_equal(networks[0](images), networks[1](images))
    np.testing.assert_allclose(networks[0](images), half(jnp.asarray(images)), atol=0.05)


def test_wrong_arguments_are_refused() -> None:
    _, network = lowered("static")
    with pytest.raises(dnw_jax.UserError, match=r"takes \[batch, 32, 32, 3\]"):
        network(np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(dnw_jax.UserError, match="model is a Linear"):
        lower(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("image_size", [0, -5, (8, 8), 8.0, None])
def test_an_image_size_is_a_positive_integer(image_size: object) -> None:
    message = re.escape(f"image_size is {image_size!r}; it must be an integer of at least 1")
    for function in (lower, dnw_jax.profile):
        with pytest.raises(dnw_jax.UserError, match=message):
            function(tiny(), image_size)


def test_an_integer_of_numpy_is_an_image_size() -> None:
    assert lower(tiny(), np.int64(9)).sizes[INPUT] == (9, 9, 3)


@pytest.mark.parametrize("name", ["static", "resnet"])
def test_an_empty_batch_has_no_logits(name: str) -> None:
    _, network = lowered(name)
    num_classes = network.sizes[network.output].channels
    assert network(images_of(network, batch=0)).shape == (0, num_classes)


def test_a_network_prints_as_a_table() -> None:
    model, network = lowered("discrete")
    heading, names, *rows = str(network).splitlines()
    assert heading.startswith("TinyClassifier: ")
    assert f"{len(network.operations)} operations in 3 parts hold " in heading
    assert names.split() == ["output", "kind", "part", "size", "numbers"]
    assert [row.split()[0] for row in rows] == [op.output for op in network.operations]
    # The stem's convolution from 3 channels to 2, with a bias; images of 32 pixels are halved.
    assert rows[0].split() == ["stem/conv", "Convolution", "stem", "16x16x2", "56"]
    steps = [row.split() for row in rows if "Edges" in row]
    num_edges = int(dnw_jax.wiring(model)["graph"].sum())
    assert [int(step[-1]) for step in steps[1:-1]] == [num_edges] * 2  # from all nodes to all
    assert repr(network) == str(network)


# What the logits depend on.

SPARSE = ("static", "discrete", "chain", "chain, sparse head", "resnet")


def with_weights(network: Network, changed: Callable[[Product], np.ndarray]) -> Network:
    """The network with other weights in its products."""
    operations = [
        dataclasses.replace(op, weights=changed(op)) if isinstance(op, Product) else op
        for op in network.operations
    ]
    return dataclasses.replace(network, operations=tuple(operations))


@pytest.mark.parametrize("name", SPARSE)
def test_dead_parts_do_not_matter(name: str) -> None:
    """The logits stay the same without the dead edges, whatever the dead channels hold."""
    _, network = lowered(name)
    live = liveness(network)
    cut = with_weights(network, lambda op: np.where(live.edges[op.output], op.weights, 0))
    dead_edges = sum(
        int((op.real_edges & ~live.edges[op.output]).sum()) for op in products(network)
    )
    dead_channels = sum(np.sum(~channels) for channels in live.channels.values())
    assert dead_edges + dead_channels > 0
    images = images_of(network)
    values = {INPUT: np.where(live.channels[INPUT], images, 7)}
    for operation in cut.operations:
        value = operation(*(values[name] for name in operation.inputs))
        values[operation.output] = np.where(live.channels[operation.output], value, 7)
    assert_close(values[network.output][:, 0, 0], network(images))


@pytest.mark.parametrize("name", SPARSE)
def test_live_edges_matter(name: str) -> None:
    """Without ReLUs, which hide some signals, each live edge changes the logits."""
    _, network = lowered(name)
    network = without_relus(network)
    images, live = images_of(network), liveness(network)
    logits = network(images)
    for product in products(network)[::2]:
        edges = np.argwhere(live.edges[product.output])
        for edge in edges[:: max(1, len(edges) // 5)]:
            kept = np.ones(product.weights.shape, bool)
            kept[tuple(edge)] = False
            cut = with_weights(
                network,
                lambda op, this=product, kept=kept: op.weights * kept if op is this else op.weights,
            )
            # An edge without effect changes nothing at all.
            assert np.any(cut(images) != logits), (product.output, edge)


def without_relus(network: Network) -> Network:
    def unchanged(op: Operation) -> Operation:
        return Add(inputs=op.inputs, output=op.output, part=op.part, nodes=op.nodes)

    operations = [unchanged(op) if isinstance(op, Relu) else op for op in network.operations]
    return dataclasses.replace(network, operations=tuple(operations))


def products(network: Network) -> list[Product]:
    return [operation for operation in network.operations if isinstance(operation, Product)]


def test_liveness_by_hand() -> None:
    """Two steps of a graph of four nodes: 0 (input) -> 1 -> 3 (output), 2 -> 3, 3 -> 1."""
    mask = np.zeros((4, 4), bool)
    for edge in ((0, 1), (1, 3), (2, 3), (3, 1)):
        mask[edge] = True

    def step(source: str, sources: range, output: str, targets: range) -> Operation:
        rectangle = mask[sources.start : sources.stop, targets.start : targets.stop]
        return Edges(
            inputs=(source,),
            output=output,
            part="graph",
            nodes=targets,
            sources=sources,
            weights=rectangle.astype(np.float32),
            mask=rectangle,
        )

    network = Network(
        model="by hand",
        operations=(
            step(INPUT, range(1), "first", range(4)),
            step("first", range(4), "second", range(3, 4)),
        ),
        sizes={INPUT: Size(2, 2, 1), "first": Size(2, 2, 4), "second": Size(2, 2, 1)},
        wirings={},
    )
    live = liveness(network)
    assert np.argwhere(live.edges["second"]).tolist() == [[1, 0], [2, 0]]
    assert np.argwhere(live.edges["first"]).tolist() == [[0, 1]]  # all but the input are still zero
    assert live.channels["first"].tolist() == [False, True, True, False]
    assert live.channels[INPUT].tolist() == [True]
