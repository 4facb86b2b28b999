"""The leaves of a pytree of parameters by path, and patterns that select some of them."""

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# The last part of the path of arrays that are no weights of edges, whatever their shape:
# a bias or scale for each attention head is a matrix, and a row of a table is looked up whole.
_NO_EDGES = ("bias", "scale", "embedding", "embeddings", "pos_embedding")


def named_leaves(tree: Tree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Every leaf by its path, such as "encoder/layer_0/kernel", and the structure without them."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}, structure


def _name(path: tuple[Any, ...]) -> str:
    # The variables of Flax NNX are nodes themselves, and hold their array as `.value`.
    if len(path) > 1 and getattr(path[-1], "name", None) in ("value", "raw_value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_array_of_floats(leaf: Any) -> bool:
    """Whether a leaf is an array (or its shape and dtype) of floating point numbers."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def holds_edges(path: str, shape: Sequence[int]) -> bool:
    """Whether this is a matrix or a convolution kernel, to judge by its name and its shape."""
    axes = [size for size in shape if size > 1]
    is_matrix = len(axes) > 1 or (len(shape) == 2 and math.prod(shape) > 1)
    return is_matrix and path.rpartition("/")[2] not in _NO_EDGES


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern selects a leaf: by its whole path, or a folder above it.

    `*` stands for anything, "/" included; "." may be written for "/".
    """
    names = (path, path.replace("/", "."))
    return any(
        fnmatch.fnmatchcase(name, each)
        for name, separator in zip(names, "/.", strict=True)
        for each in (pattern, pattern + separator + "*")
    )


def check_patterns(patterns: Iterable[str], paths: Sequence[str], field: str) -> None:
    """Refuses patterns that select nothing, all in one ValueError that lists the paths."""
    idle = [p for p in patterns if not any(matches(path, p) for path in paths)]
    if idle:
        raise ValueError(
            f"{field}: nothing matches {', '.join(map(repr, idle))}; the paths are\n  "
            + "\n  ".join(paths)
        )
