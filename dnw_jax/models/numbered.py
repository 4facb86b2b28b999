"""Numbered submodules: attributes `graph_0`, `graph_1`, ... of a module.

Flax 0.11 has no `nnx.List`, and Flax 0.12 refuses plain lists of modules. Attributes work in both.
Their names are the names of the arrays in a checkpoint.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx


def add_numbered(
    module: nnx.Module, prefix: str, submodules: Sequence[nnx.Module], first: int = 0
) -> None:
    """Sets the attributes `prefix + str(first)`, `prefix + str(first + 1)`, ... of `module`."""
    for number, submodule in enumerate(submodules, start=first):
        setattr(module, f"{prefix}{number}", submodule)


def numbered(module: nnx.Module, prefix: str, first: int = 0) -> list[Any]:
    """Returns the submodules that `add_numbered` set, in order."""
    names = (f"{prefix}{number}" for number in itertools.count(first))
    present = itertools.takewhile(lambda name: hasattr(module, name), names)
    return [getattr(module, name) for name in present]
