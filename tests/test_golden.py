"""The published PyTorch code, number by number: see `golden/README.md` for what is compared."""

import dataclasses
import functools
import hashlib
import json
import zlib
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import numpy_forward
import optax
import pytest
from flax import nnx

import dnw_jax
from dnw_jax.graphs.continuous_time import ContinuousTime
from dnw_jax.train import TrainState, create_train_state, train_step

GOLDEN = Path(__file__).parent / "golden"
CONFIG = Path(__file__).parent.parent / "configs" / "cifar10_tiny.py"
CASES = {
    "static_dnw": "wiring=static,edges=dnw",
    "static_random": "wiring=static,edges=random",
    "static_dnw_no_update": "wiring=static,edges=dnw_no_update",
    "discrete_time_dnw": "wiring=discrete,edges=dnw",
    "continuous_dnw": "wiring=continuous,edges=dnw",
}
# "Zero up to rounding" in PyTorch; a bias before a BatchNorm, for instance, has no effect.
ZERO = 1e-5


class Case:
    """One golden case and what our code makes of it, computed once."""

    def __init__(self, name: str):
        self.name = name
        self.settings = json.loads((GOLDEN / f"{name}.json").read_text())
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.config = dnw_jax.load_config(
            f"{CONFIG}:{CASES[name]}",
            {
                "schedule.name": "constant",
                "optimizer.learning_rate": str(self.settings["lr"]),
                "optimizer.momentum": str(self.settings["momentum"]),
                "optimizer.weight_decay": str(self.settings["weight_decay"]),
            },
        )
        self.model = dnw_jax.load_reference(self.state_dict(), self.config)
        self.state = create_train_state(self.config, self.model, steps_per_epoch=100)
        self.continuous = self.config.model.wiring == "continuous"

    def random_state(self, name: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{self.settings['salt']}/{name}".encode()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights by the formula."""
        values = {}
        for name, shape in self.settings["state_dict"].items():
            kind = name.rpartition(".")[2]
            if kind in ("num_batches_tracked", "zeros", "integration_time"):
                value = np.zeros(shape)
            elif kind in ("running_mean", "running_var"):
                value = self.arrays[f"running/{name}"]
            else:
                value = self.formula(kind, self.random_state(name), shape)
            values[name] = value.astype(np.float32)
        return values

    def formula(self, kind: str, rs: np.random.RandomState, shape: list[int]) -> np.ndarray:
        noise = rs.standard_normal(size=shape)
        if kind == "mask":
            drawn = (rs.uniform(size=shape) < 0.05).astype(float)
            return np.ones(shape) if self.name == "static_dnw_no_update" else drawn
        if kind == "bias":
            return 0.1 * noise
        return 1 + 0.1 * noise if len(shape) == 1 else noise / np.sqrt(np.prod(shape[1:]))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rs = self.random_state(f"batch{step}")
        batch, size, classes = (self.settings[key] for key in ("batch", "image_size", "classes"))
        images = rs.standard_normal((batch, 3, size, size)).astype(np.float32)
        labels = rs.randint(0, classes, batch).astype(np.int32)
        return {"image": images.transpose(0, 2, 3, 1), "label": labels}

    @cached_property
    def stages(self) -> dict[bool, dict[str, np.ndarray]]:
        """Of the batch of step 0, by whether in training mode."""
        return {train: self.stages_of(self.state, train) for train in (False, True)}

    def stages_of(self, state: TrainState, train: bool) -> dict[str, np.ndarray]:
        return jax.tree.map(np.asarray, _stages(state, self.batch(0)["image"], train))

    def run(self, state: TrainState) -> list[tuple[TrainState, dict[str, jax.Array]]]:
        """State and metrics after steps 0, 1, 2; of the continuous case only the first."""
        done = []
        for step in range(1 if self.continuous else self.settings["steps"]):
            done.append(train_step(state, self.batch(step)))
            state = done[-1][0]
        return done

    @cached_property
    def steps(self) -> list[tuple[TrainState, dict[str, jax.Array]]]:
        return self.run(self.state)

    def start_of_three_steps(self) -> TrainState:
        """The state at step 0; in discrete time without the one choice that is left to rounding.

        There, in the second step, pixel (1, 5) of image 5 enters the ReLU of node 542 at 1.5e-7
        (in float64), when float32 states are good to 1e-6. Whether it passes moves the third loss
        by 3e-3. In the published run it passed; 2e-6 more bias, and it does so however we round.
        """
        if self.name != "discrete_time_dnw":
            return self.state
        params = jax.tree.map(lambda array: array, self.state.params)  # a copy of the nested dicts
        params["graph"]["nodes"]["bias"] = params["graph"]["nodes"]["bias"].at[542].add(2e-6)
        return dataclasses.replace(self.state, params=params)

    @cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        """Of step 0, by the reference's names and layouts."""
        # PyTorch's momentum buffer after the first step: the gradient and the decay.
        buffer = optax.tree_utils.tree_get(self.steps[0][0].opt_state, "trace")
        decay = self.settings["weight_decay"]
        return self.in_reference_layout(
            jax.tree.map(lambda b, w: np.asarray(b - decay * w), buffer, self.state.params)
        )

    def in_reference_layout(self, params: dict) -> dict[str, np.ndarray]:
        """Trained arrays, nested as our modules, as PyTorch lays them out."""
        stem, graph, head = params["stem"], params["graph"], params["head"]
        prefix = "odesolve.odefunc." if self.continuous else ""
        arrays = {
            "downsample.0.weight": np.transpose(stem["conv"]["kernel"], (3, 2, 0, 1)),
            "downsample.0.bias": stem["conv"]["bias"],
            "downsample.1.weight": stem["conv_norm"]["scale"],
            "downsample.1.bias": stem["conv_norm"]["bias"],
            "downsample.3.weight": np.transpose(stem["depthwise_kernel"], (2, 0, 1))[:, None],
            "downsample.3.bias": stem["depthwise_bias"],
            "downsample.4.weight": np.transpose(stem["mix"]["kernel"], (3, 2, 0, 1)),
            "downsample.4.bias": stem["mix"]["bias"],
            "downsample.5.weight": stem["mix_norm"]["scale"],
            "downsample.5.bias": stem["mix_norm"]["bias"],
            f"{prefix}conv.weight": np.transpose(graph["nodes"]["kernel"], (2, 0, 1))[:, None],
            f"{prefix}graph.weight": np.transpose(graph["edges"]["weight"])[..., None, None],
            "fc.weight": np.transpose(head["kernel"]),
            "fc.bias": head["bias"],
        }
        norms = {"": slice(None)}
        if self.config.model.wiring == "static":
            bounds = [0, 32, 224, 416, 608, 800]
            norms = {f"{block}.": slice(*bounds[block : block + 2]) for block in range(5)}
        for block, nodes in norms.items():
            arrays[f"{prefix}norm.{block}weight"] = graph["nodes"]["scale"][nodes]
            arrays[f"{prefix}norm.{block}bias"] = graph["nodes"]["bias"][nodes]
        return {name: np.asarray(array) for name, array in arrays.items()}


@functools.partial(jax.jit, static_argnums=2)
def _stages(state, images, train):
    model = state.model()
    stages = {"stem": model.stem(images, train=train)}
    if not isinstance(getattr(model.graph, "dynamics", None), ContinuousTime):  # slow to compile
        stages["graph"] = model.graph(stages["stem"], train=train)
    return stages | {"logits": model(images, train=train)}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_logits(case: Case) -> None:
    tolerance = 1e-3 if case.continuous else 1e-4
    for mode, train in (("train", True), ("eval", False)):
        golden = case.arrays[f"logits_{mode}"]
        close(case.stages[train]["logits"], golden, tolerance * max(1, np.abs(golden).max()), mode)


def test_wiring(case: Case) -> None:
    (mask,) = dnw_jax.wiring(case.model).values()
    assert mask.dtype == bool
    if "masks" not in case.settings:  # no update rule: the top k all the same
        magnitude = np.abs(case.state_dict()["graph.weight"][:, :, 0, 0]).T
        np.testing.assert_array_equal(mask, magnitude >= np.sort(magnitude, None)[-32000])
        return
    ((name, (count, digest)),) = case.settings["masks"].items()
    assert dnw_jax.wiring(case.model).keys() == {name}
    assert np.count_nonzero(mask) == count
    packed = np.packbits(np.asarray(mask).T.flatten())
    assert hashlib.sha256(packed.tobytes()).hexdigest() == digest


def test_every_gradient_is_compared(case: Case) -> None:
    heads = {name.removeprefix("grad_head/") for name in case.arrays if "grad_head/" in name}
    assert case.gradients.keys() == case.settings["grad_norms"].keys() == heads
    for name, gradient in case.gradients.items():
        assert list(gradient.shape) == case.settings["state_dict"][name]


def test_gradients(case: Case) -> None:
    tolerance = 2e-2 if case.continuous else 1e-3
    for name, gradient in case.gradients.items():
        head, golden = gradient.flatten()[:16], case.arrays[f"grad_head/{name}"]
        norm = case.settings["grad_norms"][name]
        if norm < ZERO:
            assert np.linalg.norm(gradient) < ZERO, name
        else:
            close(np.linalg.norm(gradient), norm, tolerance * norm, name)
            # Relative to the largest, but no finer than float32 sums over 64 pixels allow.
            close(head, golden, max(tolerance * np.abs(golden).max(), 1e-6 * norm), name)


def test_accuracy_of_the_first_step(case: Case) -> None:
    right = case.stages[True]["logits"].argmax(-1) == case.batch(0)["label"]
    assert float(case.steps[0][1]["accuracy"]) == pytest.approx(right.mean())


def test_first_loss(case: Case) -> None:
    close(case.steps[0][1]["loss"], case.arrays["losses"][0], 2e-3, "loss")


def test_three_steps(case: Case) -> None:
    """Losses of steps 0, 1, 2, then every parameter's norm and the logits in evaluation mode."""
    if case.continuous:
        assert len(case.steps) == 1  # nothing later is comparable: see golden/README.md
        return
    steps = case.run(case.start_of_three_steps())
    close([float(metrics["loss"]) for _, metrics in steps], case.arrays["losses"], 2e-3, "losses")
    state = steps[-1][0]
    params = case.in_reference_layout(state.params)
    for name, norm in case.settings["param_norms_after"].items():
        close(np.linalg.norm(params[name]), norm, 1e-3 * norm, name)
    golden = case.arrays["logits_eval_after"]
    tolerance = 1e-3 * max(1, np.abs(golden).max())
    close(case.stages_of(state, train=False)["logits"], golden, tolerance, "logits after")


def test_the_step_that_rounding_decides(case: Case) -> None:
    """The untouched start of `start_of_three_steps`: one pixel may move the third loss."""
    if case.name != "discrete_time_dnw":
        return
    losses = [float(metrics["loss"]) for _, metrics in case.steps]
    close(losses[:2], case.arrays["losses"][:2], 2e-3, "losses")
    close(losses, case.arrays["losses"], 4e-3, "losses")


def test_every_stage(case: Case) -> None:
    """Against plain NumPy, because right logits may hide a wrong stage."""
    ours = {name: planes[:2] for name, planes in case.stages[False].items()}
    params = jax.tree.map(
        lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(case.model))
    )
    images = case.batch(0)["image"][:2].astype(np.float64)
    planes = numpy_forward.stem(images, params["stem"], train=False)
    close(ours["stem"], planes, 1e-4, "stem")

    nodes, mask = params["graph"]["nodes"], np.asarray(dnw_jax.wiring(case.model)["graph"])
    weights = np.where(mask, params["graph"]["edges"]["weight"], 0)
    graph = numpy_forward.Graph(nodes["scale"], nodes["bias"], nodes["kernel"], weights)
    match case.config.model.wiring:
        case "static":
            states = numpy_forward.static(planes, graph, [32, 224, 416, 608, 800], 100)[-1]
        case "discrete":
            states = numpy_forward.discrete(planes, graph, 5)[..., 700:]
        case "continuous":  # depends on the solver's steps, which only the published logits tell
            return
    close(ours["graph"], states, 1e-4, "graph")

    logits = states[:, 2:4, 2:4].mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    close(ours["logits"], logits, 1e-4, "logits")


def close(ours, golden, tolerance: float, name: str) -> None:
    np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance, err_msg=name)
