"""A golden case, what dnw_jax computes for it, and parameters in PyTorch's layout."""

import dataclasses
import functools
import itertools
import json
import operator
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import traverse_util

import dnw_jax
from dnw_jax.graphs.sparse_layer import SparseLayer
from dnw_jax.models import edge_layers
from dnw_jax.step.state import evaluation_state
from dnw_jax.train import TrainState, create_train_state, train_step

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parent.parent / "configs"
TINY = {
    "static_dnw": "cifar10_tiny.py:wiring=static,edges=dnw",
    "static_random": "cifar10_tiny.py:wiring=static,edges=random",
    "static_dnw_no_update": "cifar10_tiny.py:wiring=static,edges=dnw_no_update",
    "discrete_time_dnw": "cifar10_tiny.py:wiring=discrete,edges=dnw",
    "continuous_dnw": "cifar10_tiny.py:wiring=continuous,edges=dnw",
}
MOBILENETS = {
    "mbv1_cifar_dnw_x225": "cifar10_mbv1.py",
    "mbv1_cifar_complete": "cifar10_mbv1.py:edges=complete",
    "mobilenetv1_x25_cifar": "cifar10_mobilenet.py",
    "mbv1_imagenet_dnw_x225": "imagenet_mbv1.py",
    "mbv1_imagenet_dnw_small_x15": "imagenet_mbv1.py:multiplier=0.15,small=True",
    "mbv1_imagenet_dnw_x49": "imagenet_mbv1.py:multiplier=0.49",
}
# Draws random numbers in training.
DROPOUT = {"mbv1_cifar_td_eval": "cifar10_mbv1.py:edges=targeted_dropout"}
RESNETS = {
    "resnet50_allsparse10": "imagenet_resnet.py",
    "resnet50_ignorefirst20": "imagenet_resnet.py:sparsity=0.8,first_layer=dense",
    "resnet18_dense": "imagenet_resnet.py:arch=resnet18,edges=complete",
}
CASES = TINY | MOBILENETS | DROPOUT | RESNETS

# One pixel of these cases lies so close to zero that rounding decides whether it passes a ReLU. The
# path of that node's bias, its index, and the amount to add. With it the pixel does what it did in
# the published run, whatever the rounding. See golden/README.md.
NUDGES = {
    "discrete_time_dnw": ("graph", "nodes", "bias", 542, 2e-6),
    "mobilenetv1_x25_cifar": ("layer_8", "mix_norm", "bias", 106, -2e-5),
}


class Step(NamedTuple):
    """The state and the metrics after a training step, and the logits of its forward pass."""

    state: TrainState
    metrics: dict[str, jax.Array]
    logits: np.ndarray


class Case:
    """One golden case, and what dnw_jax computes for it. Everything is computed once."""

    def __init__(self, name: str):
        self.name = name
        self.settings = json.loads((GOLDEN / f"{name}.json").read_text())
        self.arrays = dict(np.load(GOLDEN / f"{name}.npz"))
        self.config = dnw_jax.load_config(
            f"{CONFIGS / CASES[name]}",
            {
                "schedule.name": "constant",
                "schedule.warmup_epochs": "0",
                "loss.label_smoothing": "0",
                "optimizer.no_decay": "",
                "optimizer.learning_rate": str(self.settings["lr"]),
                "optimizer.momentum": str(self.settings["momentum"]),
                "optimizer.weight_decay": str(self.settings["weight_decay"]),
            },
        )
        self.model = dnw_jax.load_reference(self.state_dict(), self.config)
        self.state = create_train_state(self.config, self.model, steps_per_epoch=100)
        self.continuous = self.config.model.get("wiring") == "continuous"

    @staticmethod
    def steps_of(name: str) -> int:
        return json.loads((GOLDEN / f"{name}.json").read_text())["steps"]

    @property
    def draws(self) -> bool:
        """Whether training draws random numbers."""
        return self.name in DROPOUT

    @property
    def rounds_relus(self) -> bool:
        """Whether rounding decides some ReLUs and the gradients: see golden/README.md."""
        return self.name == "resnet50_allsparse10"

    @cached_property
    def edge_layers(self) -> dict[str, SparseLayer]:
        return edge_layers(self.model)

    def reference_name(self, name: str) -> str:
        """The published name of a layer that chooses edges."""
        if self.config.model.name in ("tiny", "resnet"):
            return name
        return "linear.graph" if name == "head" else name.replace("graph_", "layers.") + ".graph"

    def random_state(self, name: str) -> np.random.RandomState:
        return np.random.RandomState(zlib.crc32(f"{self.settings['salt']}/{name}".encode()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights that the formula makes."""
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
    def eval_logits(self) -> np.ndarray:
        """The logits of the batch of step 0 in evaluation mode."""
        return self.logits_of(self.state, train=False)

    @cached_property
    def train_logits(self) -> np.ndarray:
        """The logits of the batch of step 0 in training mode."""
        return self.steps[0].logits if self.steps else self.logits_of(self.state, train=True)

    def logits_of(self, state: TrainState, train: bool) -> np.ndarray:
        """The logits of the batch of step 0."""
        return np.asarray(_logits(_freeze_edges(state), self.batch(0)["image"], train))

    def run(self, state: TrainState) -> list[Step]:
        """Steps 0, 1, 2; step 0 alone if later ones cannot be compared."""
        steps: list[Step] = []
        only_first = self.continuous or self.name in RESNETS
        for number in range(1 if only_first else self.settings["steps"]):
            state, metrics, logits = _step_and_logits(state, self.batch(number))
            steps.append(Step(state, metrics, np.asarray(logits)))
        return steps

    @cached_property
    def steps(self) -> list[Step]:
        return self.run(self.state)

    @cached_property
    def steady_steps(self) -> list[Step]:
        """The steps of a start at which rounding decides nothing: see `NUDGES`."""
        if self.name not in NUDGES:
            return self.steps
        params = jax.tree.map(lambda array: array, self.state.params)  # a copy of the nested dicts
        *path, last, node, amount = NUDGES[self.name]
        bias = functools.reduce(operator.getitem, path, params)
        bias[last] = bias[last].at[node].add(amount)
        return self.run(dataclasses.replace(self.state, params=params))

    @cached_property
    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of step 0, by the reference's names and in its layouts."""
        # After the first step the momentum buffer is the gradient plus the weight decay.
        buffer = optax.tree_utils.tree_get(self.steady_steps[0].state.opt_state, "trace")
        decay = self.settings["weight_decay"]
        return reference_layout(
            jax.tree.map(lambda b, w: np.asarray(b - decay * w), buffer, self.state.params),
            self.config,
        )


def _freeze_edges(state: TrainState) -> TrainState:
    """The state with its edges chosen, for programs that need not choose them.

    To choose the edges of a layer takes about a second to compile. Here layers of the same shape
    share a program; in a program for the whole model they do not.
    """
    model = state.model()
    for layer in edge_layers(model).values():
        layer.freeze_edges()
    return evaluation_state(model)


@functools.partial(jax.jit, static_argnums=2)
def _logits(state: TrainState, images: jax.Array, train: bool) -> jax.Array:
    return state.model()(images, train=train, key=jax.random.key(0))


@jax.jit
def _step_and_logits(state: TrainState, batch: dict[str, jax.Array]) -> tuple[Any, Any, jax.Array]:
    """One program for both, because XLA computes and compiles their forward pass only once."""
    return (*train_step(state, batch), _logits(state, batch["image"], True))


def reference_layout(params: dict, config) -> dict[str, np.ndarray]:
    """Trained arrays, nested like the modules, by the reference's names and in PyTorch's layout."""
    layouts = {"tiny": _tiny, "mbv1": _mbv1, "mobilenet": _mobilenet, "resnet": _resnet}
    layout = layouts[config.model.name]
    return {name: np.asarray(array) for name, array in layout(params, config).items()}


def _conv(kernel):
    return np.transpose(kernel, (3, 2, 0, 1))


def _depthwise(kernel):
    return np.transpose(kernel, (2, 0, 1))[:, None]


def _edges(weight):
    return np.transpose(weight)[..., None, None]


def _norm(name: str, norm: dict, channels: slice = slice(None)) -> dict:
    return {f"{name}.weight": norm["scale"][channels], f"{name}.bias": norm["bias"][channels]}


def _tiny(params: dict, config) -> dict:
    stem, graph, head = params["stem"], params["graph"], params["head"]
    prefix = "odesolve.odefunc." if config.model.wiring == "continuous" else ""
    arrays = {
        "downsample.0.weight": _conv(stem["conv"]["kernel"]),
        "downsample.0.bias": stem["conv"]["bias"],
        **_norm("downsample.1", stem["conv_norm"]),
        "downsample.3.weight": _depthwise(stem["depthwise_kernel"]),
        "downsample.3.bias": stem["depthwise_bias"],
        "downsample.4.weight": _conv(stem["mix"]["kernel"]),
        "downsample.4.bias": stem["mix"]["bias"],
        **_norm("downsample.5", stem["mix_norm"]),
        f"{prefix}conv.weight": _depthwise(graph["nodes"]["kernel"]),
        f"{prefix}graph.weight": _edges(graph["edges"]["weight"]),
        "fc.weight": np.transpose(head["kernel"]),
        "fc.bias": head["bias"],
    }
    if config.model.wiring != "static":
        return arrays | _norm(f"{prefix}norm", graph["nodes"])
    for block, (start, end) in enumerate(itertools.pairwise([0, 32, 224, 416, 608, 800])):
        arrays |= _norm(f"norm.{block}", graph["nodes"], slice(start, end))
    return arrays


def _mbv1(params: dict, config) -> dict:
    arrays = {"conv1.weight": _conv(params["stem"]["kernel"]), **_norm("bn", params["norm"])}
    stages = [(32, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 6), (512, 1024, 2)]
    for index, (num_in, num_out, depth) in enumerate(stages):
        graph, name = params[f"graph_{index}"], f"layers.{index}"
        kernel = _depthwise(graph["nodes"]["kernel"])
        arrays |= {
            f"{name}.downsample.0.weight": kernel[:num_in],
            f"{name}.graph.weight": _edges(graph["edges"]["weight"]),
        }
        if depth > 1:
            arrays[f"{name}.conv.weight"] = kernel[num_in:]
        bounds = [0, *(num_in + block * num_out for block in range(depth))]
        for block, (start, end) in enumerate(itertools.pairwise(bounds)):
            arrays |= _norm(f"{name}.norm.{block}", graph["nodes"]["norm"], slice(start, end))
    if config.model.small:
        return arrays | {"linear.graph.weight": _edges(params["head"]["kernel"])}
    head = {"weight": np.transpose(params["head"]["kernel"]), "bias": params["head"]["bias"]}
    return arrays | {f"linear.{name}": array for name, array in head.items()}


def _mobilenet(params: dict, config) -> dict:
    del config
    arrays = {
        "conv1.weight": _conv(params["stem"]["kernel"]),
        **_norm("bn1", params["norm"]),
        "linear.weight": np.transpose(params["head"]["kernel"]),
        "linear.bias": params["head"]["bias"],
    }
    for index in range(13):
        layer, name = params[f"layer_{index}"], f"layers.{index}"
        arrays |= {
            f"{name}.conv1.weight": _depthwise(layer["depthwise_kernel"]),
            **_norm(f"{name}.bn1", layer["depthwise_norm"]),
            f"{name}.conv2.weight": _conv(layer["mix"]["kernel"]),
            **_norm(f"{name}.bn2", layer["mix_norm"]),
        }
    return arrays


def _resnet(params: dict, config) -> dict:
    del config
    arrays = {}
    for path, array in traverse_util.flatten_dict(params).items():
        name, kind = ".".join(path[:-1]), path[-1]
        if kind == "kernel":
            arrays[f"{name}.weight"] = _conv(array)
        else:
            arrays[f"{name}.{'weight' if kind == 'scale' else kind}"] = array
    return arrays
