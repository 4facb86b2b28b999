"""Where arrays live: one mesh over all devices, batches split along it, everything else copied."""

from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dnw_jax.errors import UserError

_T = TypeVar("_T")


def data_mesh() -> Mesh:
    """All devices in one axis, "data".

    Auto axes: with explicit ones a diffrax solve under grad fails (ShardingTypeError).
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, accumulate_steps: int, mesh: Mesh) -> None:
    """Raises UserError if a batch's `accumulate_steps` parts cannot be split evenly over `mesh`."""
    if batch_size % (mesh.size * accumulate_steps):
        raise UserError(
            f"batch_size is {batch_size}; it must be a multiple of {mesh.size} (the devices)"
            + f" times {accumulate_steps} (accumulate_steps)" * (accumulate_steps > 1)
        )


def replicate(tree: _T, mesh: Mesh) -> _T:
    """The arrays of `tree`, whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def rows_of_this_host(batch_size: int) -> slice:
    """Which rows of a batch this host makes."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def batch_of_hosts(tree: Any, mesh: Mesh) -> Any:
    """One batch, split over all devices, of the rows that each host made."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), tree)


def split_batch(tree: _T, mesh: Mesh, axis: int = 0) -> _T:
    """The arrays of `tree`, split over the devices along `axis`, which is the batch."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))
