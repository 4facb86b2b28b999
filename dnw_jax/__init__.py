"""Discovering Neural Wirings in JAX: networks that find their own wiring while they train.

The public names, loaded when first used: a wrong setting on the command line is told at once,
without waiting for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dnw_jax.version import __version__

if TYPE_CHECKING:
    from dnw_jax.config import load_config
    from dnw_jax.deploy.profile import profile
    from dnw_jax.edges import SparsitySchedule, edge_budget, edge_mask, sparsify, top_edges
    from dnw_jax.errors import UserError
    from dnw_jax.graphs.sparse_layer import SparseConv, SparseLinear
    from dnw_jax.models import build_model, wiring
    from dnw_jax.models.reference import load_reference
    from dnw_jax.run.workdir import load

_HOMES = {
    "SparseConv": "graphs.sparse_layer",
    "SparseLinear": "graphs.sparse_layer",
    "SparsitySchedule": "edges",
    "UserError": "errors",
    "build_model": "models",
    "edge_budget": "edges",
    "edge_mask": "edges",
    "load": "run.workdir",
    "load_config": "config",
    "load_reference": "models.reference",
    "profile": "deploy.profile",
    "sparsify": "edges",
    "top_edges": "edges",
    "wiring": "models",
}

__all__ = [
    "SparseConv",
    "SparseLinear",
    "SparsitySchedule",
    "UserError",
    "__version__",
    "build_model",
    "edge_budget",
    "edge_mask",
    "load",
    "load_config",
    "load_reference",
    "profile",
    "sparsify",
    "top_edges",
    "wiring",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
