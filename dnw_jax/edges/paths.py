"""The leaves of a pytree of parameters by path, and patterns that select some of them."""

import collections
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# Arrays that are no weights of edges, whatever their shape: a bias or scale for each attention head
# is a matrix, and rows of a table are looked up whole. Flax calls every other one "kernel"; where
# all are called "weight", the folder tells.
_DENSE = re.compile(r"bias|scale|.*embed.*|(.*_)?pos(_.*)?", re.IGNORECASE)
_DENSE_FOLDER = re.compile(r"(.*_)?(emb|embed.*|pos.*|.*norm\d*|ln\d*)(_?\d+)?", re.IGNORECASE)


def named_leaves(tree: Tree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Every leaf by its path, such as "encoder/layer_0/kernel", and the structure without them.

    Raises:
      ValueError: two leaves have one path ("a/b" in a dict, and "b" in its "a").
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    children = collections.Counter(path[:-1] for path, _ in leaves)
    named = {}
    for path, leaf in leaves:
        # The variables of Flax NNX are nodes themselves, and hold their array as `.value`.
        is_variable = len(path) > 1 and getattr(path[-1], "name", None) in ("value", "raw_value")
        own = path[:-1] if is_variable and children[path[:-1]] == 1 else path
        name = jax.tree_util.keystr(own, simple=True, separator="/")
        if name in named:
            raise ValueError(f"params: two leaves are called {name!r}; rename one of them")
        named[name] = leaf
    return named, structure


def can_be_sparse(leaf: Any) -> bool:
    """Whether a leaf is an array (or its shape and dtype) of floats that edges are chosen among."""
    dtype = getattr(leaf, "dtype", None)
    is_floats = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return is_floats and jnp.finfo(dtype).bits in (16, 32, 64)


def holds_edges(path: str, shape: Sequence[int]) -> bool:
    """Whether this is a matrix or a convolution kernel, to judge by its name and its shape.

    A matrix has two axes, a kernel more, of which two are longer than 1 (a bias of
    [outputs, 1, 1] is none).
    """
    folder, name = ["", *path.split("/")][-2:]
    is_dense = _DENSE.fullmatch(name) or (
        name in ("weight", "w") and _DENSE_FOLDER.fullmatch(folder)
    )
    return not is_dense and (len(shape) == 2 or sum(size > 1 for size in shape) > 1)


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern selects a leaf: by its whole path, or a folder above it.

    `*` stands for anything, "/" included; "." may be written for "/".
    """
    pattern = pattern.rstrip("/")
    names = ((path, "/"), (path.replace("/", "."), "."))
    return any(
        name == pattern or fnmatch.fnmatchcase(name, each)
        for name, separator in names
        for each in (pattern, pattern + separator + "*")
    )


def names(pattern: str, path: str) -> bool:
    """Whether a pattern names this very leaf: not a folder, and not just with a wildcard."""
    last = re.split(r"[/.]", pattern)[-1]
    own = path.rpartition("/")[2]
    return pattern in (path, path.replace("/", ".")) or (
        last.strip("*?") != "" and fnmatch.fnmatchcase(own, last) and matches(path, pattern)
    )
