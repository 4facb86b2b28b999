"""Prints the bytes that each device holds while a run trains, by array. Needs no such devices.

    python -m experiments.benchmarks.device_bytes

All devices form one mesh with a single axis, "data". The state is whole on every device, and the
batch is split over them. What a step stores besides, mostly activations, is in the results of
`device_programs`. Arrays that are smaller than `--least` are added up in one line for each group.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from experiments.benchmarks.device_cases import CASES, config_of, training_arguments
from experiments.benchmarks.flags import flag_parser, positive_integer


class HeldArray(NamedTuple):
    """An argument of the training step.

    Attributes:
      name: its path.
      shape: of the whole array.
      dtype: of its elements.
      bytes_on_device: on each device.
      num_parts: into how many parts it is split; 1 means that every device holds all of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes_on_device: int
    num_parts: int

    @property
    def group(self) -> str:
        """Returns the first part of the name."""
        return self.name.partition(".")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table for each case."""
    parser = flag_parser(__doc__ or "")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=["imagenet_mbv1", "imagenet_resnet"],
        metavar="NAME",
        help=", ".join(CASES),
    )
    parser.add_argument(
        "--devices", type=positive_integer, metavar="N", default=256, help="devices of the mesh"
    )
    parser.add_argument(
        "--least", type=positive_integer, metavar="BYTES", default=1_000_000, help="of a line"
    )
    flags = parser.parse_args(argv)
    for name in flags.cases:
        case = CASES[name]
        batch_size = case.batch_per_device(flags.devices) * flags.devices
        held = list(arrays_on_device(name, flags.devices, batch_size))
        print(f"{name}, {flags.devices} devices, batch_size {batch_size}, {case.dtype}")
        for line in _lines(held, flags.least):
            print("  " + line)


def arrays_on_device(case: str, num_devices: int, batch_size: int) -> Iterator[HeldArray]:
    """Yields the arguments of the training step of a case."""
    mesh = AbstractMesh((num_devices,), ("data",), axis_types=(AxisType.Auto,))
    state, _, batch = training_arguments(config_of(CASES[case], batch_size), mesh)
    # The state's fields are named one by one, because a dataclass prints as a list of leaves.
    fields = {
        "params": state.params,
        "optimizer": state.opt_state,
        "variables": state.variables,
        "average": state.average,
        "counters": (state.step, state.seed),
        "batch": batch,
    }
    for group, tree in fields.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            part = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
            size = math.prod(part) * leaf.dtype.itemsize
            num_parts = math.prod(leaf.shape) // max(math.prod(part), 1)
            name = ".".join([group, *filter(None, map(_name, path))])
            yield HeldArray(name, leaf.shape, str(leaf.dtype), size, num_parts)


def _name(key: Any) -> str:
    """Returns a dictionary's key; a position in a tuple says nothing."""
    return str(getattr(key, "key", ""))


def _lines(held: list[HeldArray], least: int) -> Iterator[str]:
    for group in dict.fromkeys(array.group for array in held):
        members = [array for array in held if array.group == group]
        total = sum(array.bytes_on_device for array in members)
        yield f"{total / 1e6:9.3f} MB  {group}: {len(members)} arrays, {_place(members)}"
        large = [array for array in members if array.bytes_on_device >= least]
        for array in sorted(large, key=lambda array: -array.bytes_on_device):
            shape = ", ".join(map(str, array.shape))
            size = f"{array.bytes_on_device / 1e6:9.3f} MB"
            yield f"  {size}  {array.name.partition('.')[2]} {array.dtype}[{shape}]"
        small = sum(array.bytes_on_device for array in members if array.bytes_on_device < least)
        if large and small:
            yield f"  {small / 1e6:9.3f} MB  {len(members) - len(large)} smaller arrays"
    total = sum(array.bytes_on_device for array in held)
    replicated = sum(array.bytes_on_device for array in held if array.num_parts == 1)
    yield f"{total / 1e6:9.3f} MB  in all: {replicated / 1e6:.3f} MB are the same on every device"


def _place(members: list[HeldArray]) -> str:
    (num_parts,) = {array.num_parts for array in members}
    return "whole on every device" if num_parts == 1 else f"split into {num_parts} parts"


if __name__ == "__main__":
    main()
