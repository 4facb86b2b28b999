"""The programs of a run, lowered for devices that this machine need not have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

import dnw_jax
from dnw_jax.data import STATISTICS, DeviceSplit
from dnw_jax.step.metrics import Sums
from dnw_jax.step.programs import MAX_STEPS, IndexedBatches, make_updates
from dnw_jax.step.state import TrainState, create_train_state, evaluate_step, with_frozen_edges

AnyMesh = Mesh | AbstractMesh


class DeviceCase(NamedTuple):
    """A config file, and what a device computes at a time.

    Attributes:
      config: the config file.
      batch: examples of a step on each device.
      dtype: in which the network computes.
      batch_on_pod: as `batch`, on 256 devices; 0 means `batch`.
    """

    config: str
    batch: int
    dtype: str = "float32"
    batch_on_pod: int = 0

    def batch_per_device(self, num_devices: int) -> int:
        """Returns the examples of a step on each of `num_devices`."""
        return self.batch_on_pod or self.batch if num_devices >= 256 else self.batch


# ImageNet: 64 a chip, and 16 on 256 chips, so that the batch is 4,096 there.
CASES = {
    "imagenet_mbv1": DeviceCase("configs/imagenet_mbv1.py", 64, "bfloat16", 16),
    "imagenet_mbv1_x49": DeviceCase("configs/imagenet_mbv1.py:multiplier=0.49", 64, "bfloat16", 16),
    "imagenet_resnet": DeviceCase("configs/imagenet_resnet.py", 64, "bfloat16", 16),
    "digits": DeviceCase("configs/digits.py", 32),
    "mnist_tiny": DeviceCase("configs/mnist_tiny.py", 128),
    "tiny_static": DeviceCase("configs/cifar10_tiny.py:wiring=static", 128),
    "tiny_discrete": DeviceCase("configs/cifar10_tiny.py:wiring=discrete", 128),
    "tiny_continuous": DeviceCase("configs/cifar10_tiny.py:wiring=continuous", 128),
    "cifar10_mbv1": DeviceCase("configs/cifar10_mbv1.py", 128),
    "cifar10_mobilenet": DeviceCase("configs/cifar10_mobilenet.py", 128),
    "cifar10_resnet": DeviceCase("configs/cifar10_resnet.py", 128),
}
MODES = ("train", "evaluate")

_ROOT = Path(__file__).parents[2]
NUM_TRAIN = {"digits": 1437, "mnist": 60_000, "cifar10": 50_000, "imagenet2012": 1_281_167}


def config_of(case: DeviceCase, batch_size: int) -> ConfigDict:
    """Returns the config of a case with a global batch of `batch_size`."""
    overrides = {"dtype": case.dtype, "batch_size": str(batch_size)}
    return dnw_jax.load_config(f"{_ROOT}/{case.config}", overrides)


def state_shapes(config: ConfigDict) -> TrainState:
    """Returns the state of a run, with shapes instead of arrays."""
    steps_per_epoch = max(1, NUM_TRAIN[config.dataset.name] // config.batch_size)
    return jax.eval_shape(
        lambda: create_train_state(
            config, dnw_jax.build_model(config), steps_per_epoch=steps_per_epoch
        )
    )


def training_arguments(config: ConfigDict, mesh: AnyMesh) -> tuple[Any, ...]:
    """Returns the arguments of `make_updates`, as shapes with shardings."""
    arguments = (state_shapes(config), jax.eval_shape(Sums.zero))
    return *replicated(arguments, mesh), _batches(config, mesh)


def lower(mode: str, config: ConfigDict, mesh: AnyMesh) -> jax.stages.Lowered:
    """Returns the program of a step in a run: one training batch, or one of the evaluation."""
    if mode == "train":
        return make_updates.lower(*training_arguments(config, mesh))
    state = jax.eval_shape(with_frozen_edges, state_shapes(config))
    batch = _batch(config, mesh, masked=True)
    return evaluate_step.lower(replicated(state, mesh), batch)


def replicated(tree: Any, mesh: AnyMesh) -> Any:
    """Returns `tree` with the shape of every array, whole on every device."""
    return _on_devices(tree, NamedSharding(mesh, PartitionSpec()))


def _on_devices(tree: Any, sharding: NamedSharding) -> Any:
    def shape_of(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(shape_of, tree)


def is_streamed(config: ConfigDict) -> bool:
    """Returns whether photographs are read during training, so that a program makes one step."""
    return config.dataset.name == "imagenet2012"


def _batches(config: ConfigDict, mesh: AnyMesh) -> IndexedBatches | dict[str, Any]:
    dataset = config.dataset
    if is_streamed(config):
        return _batch(config, mesh, masked=_num_hosts(mesh) > 1)
    num_train = NUM_TRAIN[dataset.name]
    shape = (num_train, dataset.image_size, dataset.image_size, dataset.num_channels)
    split = DeviceSplit(
        _shape(shape, jnp.uint8),
        _shape((num_train,), jnp.int32),
        STATISTICS[dataset.name],
        dataset.crop_padding,
        dataset.flip,
    )
    indices = _split((MAX_STEPS, config.batch_size), jnp.int32, mesh, axis=1)
    count = _shape((), jnp.int32, weak_type=True)
    return IndexedBatches(replicated(split, mesh), indices, count)


def _batch(config: ConfigDict, mesh: AnyMesh, *, masked: bool) -> dict[str, Any]:
    size = config.dataset.image_size
    shape = (config.batch_size, size, size, config.dataset.num_channels)
    batch = {
        "image": _split(shape, jnp.float32, mesh),
        "label": _split((config.batch_size,), jnp.int32, mesh),
    }
    if masked:
        batch["mask"] = _split((config.batch_size,), jnp.bool_, mesh)
    return batch


def _num_hosts(mesh: AnyMesh) -> int:
    if isinstance(mesh, AbstractMesh):
        return 1
    return len({device.process_index for device in mesh.devices.flat})


_shape: Callable[..., Any] = jax.ShapeDtypeStruct


def _split(shape: tuple[int, ...], dtype: Any, mesh: AnyMesh, axis: int = 0) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
