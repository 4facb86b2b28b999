"""Discovering Neural Wirings in JAX: networks that find their own wiring while they train.

The public names are the imports in `__init__.pyi`. Each is imported when it is first used, so that
`import dnw_jax` does not import jax, and a wrong setting on the command line is reported at once.
"""

import ast
import importlib
from importlib import resources
from typing import Any

_STUB = ast.parse(resources.files(__name__).joinpath("__init__.pyi").read_text(encoding="utf-8"))
_MODULES = {
    alias.name: str(statement.module)
    for statement in _STUB.body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}

__all__ = sorted(_MODULES)  # noqa: PLE0605 (type checkers read the stub)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name] == __name__:  # a folder of this package
        value: Any = importlib.import_module(f"{__name__}.{name}")
    else:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
