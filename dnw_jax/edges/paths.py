"""Names the leaves of a pytree of parameters by their paths, and matches patterns to them."""

import collections
import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any

# Names of arrays that hold no edges, whatever their shape: a bias or scale for each attention head
# is a matrix, and the rows of an embedding are looked up whole. Flax calls the arrays with edges
# "kernel". Other libraries call every array "weight"; there the name of the folder decides.
_DENSE = re.compile(r"bias|scale|.*embed.*|(.*_)?pos(_.*)?", re.IGNORECASE)
_DENSE_FOLDER = re.compile(r"(.*_)?(emb|embed.*|pos.*|.*norm\d*|ln\d*)(_?\d+)?", re.IGNORECASE)


def named_leaves(tree: Tree) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Returns the leaves by path, such as "encoder/layer_0/kernel", and the tree's structure.

    Raises:
      ValueError: two leaves have the same path ("a/b" in a dict, and "b" in its "a").
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    children = collections.Counter(path[:-1] for path, _ in leaves)
    named = {}
    for path, leaf in leaves:
        # A variable of Flax NNX is a node whose only child is its array, called "value".
        is_variable = len(path) > 1 and getattr(path[-1], "name", None) in ("value", "raw_value")
        leaf_path = path[:-1] if is_variable and children[path[:-1]] == 1 else path
        name = jax.tree_util.keystr(leaf_path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"params: two leaves are called {name!r}; rename one of them")
        named[name] = leaf
    return named, structure


def can_be_sparse(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one, of floats that `edge_mask` accepts."""
    dtype = getattr(leaf, "dtype", None)
    is_floats = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return is_floats and jnp.finfo(dtype).bits in (16, 32, 64)


def holds_edges(path: str, shape: Sequence[int]) -> bool:
    """Whether a leaf is a matrix or a convolution kernel, judged by its name and shape.

    A matrix has two axes. A kernel has more, and at least two of them are longer than 1: this
    leaves out a bias of shape [outputs, 1, 1].
    """
    folder, name = ["", *path.split("/")][-2:]
    is_dense = _DENSE.fullmatch(name) or (
        name in ("weight", "w") and _DENSE_FOLDER.fullmatch(folder)
    )
    return not is_dense and (len(shape) == 2 or sum(size > 1 for size in shape) > 1)


def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern matches the whole path of a leaf, or a folder above the leaf.

    `*` matches any characters, "/" included; "." may stand for "/".
    """
    pattern = pattern.rstrip("/")
    spellings = ((path, "/"), (path.replace("/", "."), "."))
    return any(
        spelling == pattern
        or fnmatch.fnmatchcase(spelling, pattern)
        or fnmatch.fnmatchcase(spelling, pattern + separator + "*")
        for spelling, separator in spellings
    )


def names_leaf(pattern: str, path: str) -> bool:
    """Returns True if the pattern spells out the leaf's own name, not only its folder or `*`."""
    last = re.split(r"[/.]", pattern)[-1]
    leaf_name = path.rpartition("/")[2]
    return pattern in (path, path.replace("/", ".")) or (
        last.strip("*?") != "" and fnmatch.fnmatchcase(leaf_name, last) and matches(path, pattern)
    )
