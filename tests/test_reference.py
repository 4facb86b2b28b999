"""Loading the published weights: every array's place, and errors for arrays that do not fit."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import dnw_jax
from dnw_jax.config import load_config
from dnw_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

TESTS = Path(__file__).parent
DIGITS = TESTS.parent / "configs" / "digits.py"
HAS_TORCH = importlib.util.find_spec("torch") is not None

# 12 nodes: 4 inputs and two blocks of 4; images of one channel; 3 classes.
FIELDS = {
    "model.num_nodes": "12",
    "model.num_inputs": "4",
    "model.num_outputs": "2",
    "model.depth": "3",
    "dataset.num_classes": "3",
}
STEM = {
    "downsample.0.weight": (2, 1, 3, 3),
    "downsample.0.bias": (2,),
    "downsample.1.weight": (2,),
    "downsample.1.bias": (2,),
    "downsample.1.running_mean": (2,),
    "downsample.1.running_var": (2,),
    "downsample.1.num_batches_tracked": (),
    "downsample.3.weight": (2, 1, 3, 3),
    "downsample.3.bias": (2,),
    "downsample.4.weight": (4, 2, 1, 1),
    "downsample.4.bias": (4,),
    "downsample.5.weight": (4,),
    "downsample.5.bias": (4,),
    "downsample.5.running_mean": (4,),
    "downsample.5.running_var": (4,),
    "downsample.5.num_batches_tracked": (),
    "fc.weight": (3, 2),
    "fc.bias": (3,),
}
GRAPHS = {
    "static": {"zeros": (1, 8, 4, 4), "conv.weight": (12, 1, 3, 3), "graph.weight": (12, 12, 1, 1)}
    | {f"norm.{block}.{kind}": (4,) for block in range(3) for kind in ("weight", "bias")},
    "discrete": {
        "zeros": (1, 8, 4, 4),
        "conv.weight": (12, 1, 3, 3),
        "graph.weight": (12, 12, 1, 1),
        "norm.weight": (12,),
        "norm.bias": (12,),
    },
    "continuous": {
        "zeros": (1, 8, 4, 4),
        "odesolve.integration_time": (2,),
        "odesolve.odefunc.conv.weight": (12, 1, 3, 3),
        "odesolve.odefunc.graph.weight": (12, 12, 1, 1),
        "odesolve.odefunc.norm.weight": (12,),
        "odesolve.odefunc.norm.bias": (12,),
    },
}


def config_of(wiring: str, edges: str = "dnw"):
    return load_config(f"{DIGITS}:wiring={wiring},edges={edges}", FIELDS)


def state_dict(wiring: str) -> dict[str, np.ndarray]:
    """Published arrays in which no number occurs twice."""
    arrays, start = {}, 0.0
    for name, shape in (STEM | GRAPHS[wiring]).items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    return arrays


def problems_of(arrays: object, wiring: str = "static", edges: str = "dnw") -> list[str]:
    """The problems that the error lists."""
    with pytest.raises(UserError) as caught:
        dnw_jax.load_reference(arrays, config_of(wiring, edges))
    heading, *problems = str(caught.value).splitlines()
    assert "do not fit the model" in heading
    return [line.strip() for line in problems]


@pytest.mark.parametrize("wiring", GRAPHS)
def test_every_published_entry_is_loaded_to_its_place(wiring: str) -> None:
    arrays = state_dict(wiring)
    model = dnw_jax.load_reference(arrays, config_of(wiring))
    prefix = "odesolve.odefunc." if wiring == "continuous" else ""

    def same(ours, name: str, index: object = ..., axes: tuple[int, ...] | None = None) -> None:
        expected = arrays.pop(name)[index]
        np.testing.assert_array_equal(ours[...], expected.transpose(axes), err_msg=name)

    for conv, name in ((model.stem.conv, "downsample.0"), (model.stem.mix, "downsample.4")):
        same(conv.kernel, f"{name}.weight", axes=(2, 3, 1, 0))
        same(conv.bias, f"{name}.bias")
    for norm, name in (
        (model.stem.conv_norm, "downsample.1"),
        (model.stem.mix_norm, "downsample.5"),
    ):
        same(norm.scale, f"{name}.weight")
        same(norm.bias, f"{name}.bias")
        same(norm.mean, f"{name}.running_mean")
        same(norm.var, f"{name}.running_var")
        arrays.pop(f"{name}.num_batches_tracked")
    same(model.stem.depthwise_kernel, "downsample.3.weight", np.s_[:, 0], (1, 2, 0))
    same(model.stem.depthwise_bias, "downsample.3.bias")
    same(model.graph.nodes.kernel, f"{prefix}conv.weight", np.s_[:, 0], (1, 2, 0))
    # [targets, sources, 1, 1] in PyTorch, [sources, targets] here.
    same(model.graph.edges.weight, f"{prefix}graph.weight", np.s_[:, :, 0, 0], (1, 0))
    same(model.head.kernel, "fc.weight", axes=(1, 0))
    same(model.head.bias, "fc.bias")
    for ours, kind in ((model.graph.nodes.scale, "weight"), (model.graph.nodes.bias, "bias")):
        names = [f"norm.{block}.{kind}" for block in range(3)]
        names = names if wiring == "static" else [f"{prefix}norm.{kind}"]
        np.testing.assert_array_equal(ours[...], np.concatenate([arrays.pop(n) for n in names]))
    assert set(arrays) <= {"zeros", "odesolve.integration_time"}
    assert model.graph.edges.weight[...].dtype == np.float32


@pytest.mark.parametrize("wiring", GRAPHS)
def test_the_mask_of_a_random_graph(wiring: str) -> None:
    name = ("odesolve.odefunc." if wiring == "continuous" else "") + "graph.mask"
    drawn = np.random.default_rng(0).integers(0, 2, (12, 12, 1, 1)).astype(np.float32)
    model = dnw_jax.load_reference(
        state_dict(wiring) | {name: drawn}, config_of(wiring, edges="random")
    )
    np.testing.assert_array_equal(dnw_jax.wiring(model)["graph"], drawn[:, :, 0, 0].T == 1)
    (problem,) = problems_of(state_dict(wiring) | {name: drawn / 2}, wiring, "random")
    assert problem == f"a mask that is not all zeros and ones: {name}"
    # Other rules keep no mask: a mask of ones does nothing; any other would be another network.
    dnw_jax.load_reference(state_dict(wiring) | {name: np.ones_like(drawn)}, config_of(wiring))
    (problem,) = problems_of(state_dict(wiring) | {name: drawn}, wiring)
    assert problem.startswith(f"a mask that is not all ones: {name}")
    assert problems_of(state_dict(wiring), wiring, "random") == [f"missing: {name} (12, 12, 1, 1)"]


@pytest.mark.parametrize("name", ["foo.mask", "bar.zeros", "fc.num_batches_tracked"])
def test_a_name_that_resembles_an_unused_buffer_is_unknown(name: str) -> None:
    assert problems_of(state_dict("static") | {name: np.ones(3)}) == [f"unknown: {name} (3,)"]


def test_one_error_lists_every_problem() -> None:
    arrays = state_dict("static")
    del arrays["fc.bias"], arrays["norm.2.weight"]
    arrays["downsample.0.weight"] = np.zeros((2, 3, 3, 3))
    arrays["conv.weight"] = np.zeros((12, 9))
    arrays["norm.3.weight"] = np.zeros(4)
    arrays["head.weight"] = np.zeros((3, 2))
    assert sorted(problems_of(arrays)) == [
        "missing: fc.bias (3,)",
        "missing: norm.2.weight (4,)",
        "unknown: head.weight (3, 2)",
        "unknown: norm.3.weight (4,)",
        "wrong shape: conv.weight (12, 9), the model has (12, 1, 3, 3)",
        "wrong shape: downsample.0.weight (2, 3, 3, 3), the model has (2, 1, 3, 3)",
    ]


def test_an_empty_state_dict() -> None:
    needed = {name for name in state_dict("static") if "num_batches" not in name} - {"zeros"}
    problems = problems_of({})
    assert {line.split()[1] for line in problems} == needed
    assert all(line.startswith("missing: ") for line in problems)


def test_weights_of_another_wiring() -> None:
    problems = problems_of(state_dict("discrete"), "continuous")
    assert "unknown: graph.weight (12, 12, 1, 1)" in problems
    assert "missing: odesolve.odefunc.graph.weight (12, 12, 1, 1)" in problems


def test_the_prefix_of_data_parallel() -> None:
    arrays = state_dict("discrete")
    plain = dnw_jax.load_reference(arrays, config_of("discrete"))
    prefixed = {f"module.{name}": array for name, array in arrays.items()}
    model = dnw_jax.load_reference(prefixed, config_of("discrete"))
    for ours, expected in zip(leaves(model), leaves(plain), strict=True):
        np.testing.assert_array_equal(ours, expected)


def leaves(model: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(a) for _, a in sorted(nnx.to_flat_state(nnx.state(model)))]


def test_the_names_here_are_those_of_the_published_code() -> None:
    """The golden files have the published names and the full shapes."""
    for name, wiring in (
        ("static_dnw", "static"),
        ("discrete_time_dnw", "discrete"),
        ("continuous_dnw", "continuous"),
    ):
        golden = json.loads((TESTS / "golden" / f"{name}.json").read_text())["state_dict"]
        named = {n for n in golden if not n.startswith("norm.")}
        ours = {n for n in STEM | GRAPHS[wiring] if not n.startswith("norm.")}
        assert named <= ours
        assert ours - named <= {"zeros", "odesolve.integration_time"}


def test_a_pt_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pt: no such file"):
        dnw_jax.load_reference(tmp_path / "model.pt", config_of("static"))


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed, so nothing is missing")
def test_a_pt_file_without_torch(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(UserError, match=r"pip install 'dnw-jax\[reference\]'"):
        dnw_jax.load_reference(tmp_path / "model.pt", config_of("static"))


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch (the extra `reference`) is not installed")
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_pt_file(tmp_path: Path, key: str | None) -> None:
    import torch  # noqa: PLC0415  an optional extra

    arrays = {name: torch.from_numpy(a) for name, a in state_dict("static").items()}
    torch.save({key: arrays} if key else arrays, tmp_path / "model.pt")
    model = dnw_jax.load_reference(tmp_path / "model.pt", config_of("static"))
    expected = dnw_jax.load_reference(state_dict("static"), config_of("static"))
    for ours, theirs in zip(leaves(model), leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="no such file"):
        dnw_jax.load_reference(tmp_path / "other.pt", config_of("static"))
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a PyTorch file of plain arrays"):
        dnw_jax.load_reference(str(tmp_path / "broken.pt"), config_of("static"))
