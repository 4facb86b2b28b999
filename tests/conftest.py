"""What all tests share: the CPU, compiled programs, run-time checks of shapes, fixed examples."""

import atexit
import os
import tempfile

# JAX reads these variables when it is imported, and the processes that tests start inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile the same programs. The folder is new for each session, and the workers of
    # pytest-xdist inherit it, so that each program is compiled once a session. To share it between
    # sessions, set the variable to a folder.
    _cache = tempfile.TemporaryDirectory(prefix="dnw_jax_tests_", ignore_cleanup_errors=True)
    atexit.register(_cache.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The folders and modules whose jaxtyping annotations are enforced. The hook must be installed
# before the package is imported. Left out: `deploy.network` and `deploy.profile`, because a wrong
# type of an argument must reach their UserErrors; `step.programs` and `step.state`, because JAX
# puts descriptions of arrays into their dataclasses when it lowers a program.
CHECKED = (
    "deploy.builder",
    "deploy.liveness",
    "deploy.lower_graphs",
    "deploy.lower_models",
    "deploy.operations",
    "deploy.products",
    "deploy.table",
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


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs_of_a_module() -> Iterator[None]:
    """Frees the memory of programs that later modules do not need; the others are on disk.

    Also keeps programs of `quick_compilation` out of other modules: their last bits would differ.
    """
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Limits the memory maps, which programs take: at 65,530, Linux's limit, a process crashes."""
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
    """Compiles in two thirds of the time, to slower code: for tests of results, not of speed."""
    name = "jax_disable_most_optimizations"
    jax.config.update(name, True)
    os.environ[name.upper()] = "1"  # for the processes that a test starts
    yield
    jax.config.update(name, False)
    del os.environ[name.upper()]
