"""What all tests share: the CPU, shapes and types checked at run time, the same examples each time.

The jaxtyping annotations of the functions below are enforced; the hook has to be there before
the package is imported.
"""

import os

# Before jax is imported; a test that starts a process of its own passes it on.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

CHECKED = (
    "deploy.operations",
    "deploy.products",
    "edges",
    "graphs",
    "models",
    "ops",
    "show",
    "step.metrics",
)

install_import_hook([f"dnw_jax.{name}" for name in CHECKED], "beartype.beartype")

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("deterministic")


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """No implicit dtype promotion: float32 and bfloat16 meet only where the code says so."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Each program takes memory maps, of which Linux gives a process 65,530; then it crashes."""
    yield
    if _num_memory_maps() > 20_000:
        jax.clear_caches()


def _num_memory_maps() -> int:
    try:
        with open("/proc/self/maps", "rb") as maps:
            return sum(1 for _ in maps)
    except OSError:
        return 0


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles in half the time, to slower code: for tests that only need it to be right."""
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    os.environ[name.upper()] = "1"  # for the processes that a test starts
    yield
    jax.config.update(name, False)
    del os.environ[name.upper()]
    # Else later tests would run some of that code, and their last bits would differ.
    jax.clear_caches()
