"""Where arrays are: one mesh of all devices. Batches are split over it, other arrays copied."""

from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dnw_jax.errors import UserError

_T = TypeVar("_T")


def data_mesh() -> Mesh:
    """Returns a mesh of all devices with a single axis, "data".

    The axis is Auto: with Explicit axes, the default of `jax.make_mesh`, a diffrax solve under
    `value_and_grad` raised ShardingTypeError.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate_steps: int, mesh: Mesh) -> None:
    """Raises UserError unless each of the `accumulate_steps` parts of a batch fits the devices.

    Every device must hold equally many examples of each part.
    """
    if batch_size % (mesh.size * accumulate_steps):
        raise UserError(
            f"batch_size is {batch_size}; it must be a multiple of {mesh.size} (the devices)"
            + f" times {accumulate_steps} (accumulate_steps)" * (accumulate_steps > 1)
        )


def replicate(tree: _T, mesh: Mesh) -> _T:
    """Returns `tree` with every array whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def rows_of_this_host(batch_size: int) -> slice:
    """Returns which rows of a batch this host makes; every host makes equally many."""
    rows_per_host = batch_size // jax.process_count()
    first = jax.process_index() * rows_per_host
    return slice(first, first + rows_per_host)


def batch_of_hosts(tree: Any, mesh: Mesh) -> Any:
    """Returns one batch, split over all devices, from the rows that each host made."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def split_batch(tree: _T, mesh: Mesh, axis: int = 0) -> _T:
    """Returns `tree` with every array split over the devices along `axis`, the batch axis."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))
