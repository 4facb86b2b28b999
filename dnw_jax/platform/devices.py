"""Where arrays are: one mesh of all devices. Batches are split over it, other arrays copied."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array

from dnw_jax.errors import UserError

_T = TypeVar("_T")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of `devices` with a single axis, "data"; by default of all of all hosts.

    The devices of a host follow each other, so a host makes one part of each batch
    (`rows_of_this_host`). The axis is Auto: with Explicit axes, the default of `jax.make_mesh`, a
    diffrax solve under `value_and_grad` raised ShardingTypeError.
    """
    of_run = jax.devices() if devices is None else devices
    ordered = sorted(of_run, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate_steps: int, mesh: Mesh) -> None:
    """Raises UserError unless each of the `accumulate_steps` parts of a batch fits the devices.

    Every device must hold equally many examples of each part.
    """
    multiple = mesh.size * accumulate_steps
    if batch_size % multiple:
        lower = batch_size - batch_size % multiple
        nearest = [str(size) for size in (lower, lower + multiple) if size]
        raise UserError(
            f"batch_size is {batch_size}; it must be a multiple of {mesh.size} (the devices)"
            + f" times {accumulate_steps} (accumulate_steps)" * (accumulate_steps > 1)
            + f", for instance {' or '.join(nearest)}"
        )


def replicate(tree: _T, mesh: Mesh) -> _T:
    """Returns `tree` with every array whole on every device; every host passes the same arrays."""
    return _place(tree, NamedSharding(mesh, PartitionSpec()))


def split_batch(tree: _T, mesh: Mesh, axis: int = 0) -> _T:
    """Returns `tree` with every array split over the devices along `axis`, the batch axis.

    Every host passes the whole arrays; `batch_of_hosts` takes only the rows of each host.
    """
    return _place(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


def local(tree: _T) -> _T:
    """Returns this host's copy, on one device, of every array of a replicated `tree`.

    What is computed from it is computed by this host alone.
    """
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def rows_of_this_host(batch_size: int) -> slice:
    """Returns which rows of a batch this host makes; every host makes equally many."""
    rows_per_host = batch_size // jax.process_count()
    first = jax.process_index() * rows_per_host
    return slice(first, first + rows_per_host)


def batch_of_hosts(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Returns one batch, split over all devices, from the rows that each host made."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in rows.items()
    }


def _place(tree: _T, sharding: Sharding) -> _T:
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    # `device_put` would first send whole arrays to all hosts, to compare them.
    def place(array: Array | np.ndarray) -> Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)
