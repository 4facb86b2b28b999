"""The rules of the house: who imports whom, what is public, what every file and name must have."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dnw_jax
from dnw_jax.config import schema

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dnw_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# The folders from top to bottom: each imports only from itself and from what follows it.
# ARCHITECTURE.md draws them.
LAYERS = (
    "main",
    "commands",
    "train",
    "run",
    "step",
    "deploy",
    "show",
    "models",
    "graphs",
    "data",
    "edges",
    "ops",
    "platform",
    "config",
    "errors",
    "version",
)
# What a folder does not need, although it lies below.
NOT_BELOW = {
    "deploy": {"data", "platform", "show"},
    "show": {"models", "graphs", "data", "edges", "ops", "platform", "config"},
    "models": {"data", "platform"},
    "graphs": {"data", "platform", "errors"},
    "data": {"edges", "ops", "platform"},
    "edges": {"platform", "config", "errors"},
    "ops": {"platform", "config", "errors"},
    "platform": {"config"},
}
STDLIB = set(sys.stdlib_module_names)
# The only libraries that these folders may import.
OTHERS = {
    "ops": {"diffrax", "jax", "jaxtyping"},
    "edges": {"jax", "jaxtyping", "numpy"},
    "graphs": {"flax", "jax", "jaxtyping", "numpy"},
    "show": {"jaxtyping", "numpy"},
    "config": {"ml_collections"},
    "errors": set(),
    "version": set(),
}
# The only place, a folder or a file, that imports these libraries.
ONLY_HOME = {
    "orbax": "run/checkpoint.py",
    "diffrax": "ops/runge_kutta.py",
    "tensorboardX": "run/writers.py",
    "cv2": "data",
    "grain": "data",
    "simplejpeg": "data",
}
NEVER_AT_MODULE_LEVEL = {
    "simplejpeg",
    "cv2",
    "grain",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}


def home(path: Path) -> str:
    """The module, or the folder, that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names that a file imports; or only those at module level, not `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from dnw_jax import data` imports dnw_jax.data.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours_and_others(path: Path) -> tuple[set[str], set[str]]:
    names = [name.split(".") for name in imports(path)]
    ours = {parts[1] for parts in names if parts[0] == "dnw_jax" and len(parts) > 1}
    return ours, {parts[0] for parts in names} - {"dnw_jax"} - STDLIB


def test_the_layers_are_all_there_is() -> None:
    assert {home(path) for path in FILES} == {"__init__", *LAYERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    ours, others = ours_and_others(path)
    if home(path) != "__init__":  # names, loaded when used
        below = set(LAYERS[LAYERS.index(home(path)) :])
        assert ours <= below - NOT_BELOW.get(home(path), set())
    if home(path) in OTHERS:
        assert others <= OTHERS[home(path)]
    for library, only in ONLY_HOME.items():
        place = path.relative_to(PACKAGE).as_posix()
        assert library not in others or place.startswith(only), f"only {only} imports {library}"
    top = {name.split(".")[0] for name in imports(path, everywhere=False)}
    assert not top & NEVER_AT_MODULE_LEVEL


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_import_only_ml_collections(path: Path) -> None:
    assert ours_and_others(path) == (set(), {"ml_collections"})


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_wrong_settings_are_told_without_jax() -> None:
    code = "import sys, dnw_jax.main, dnw_jax.config; print('jax' in sys.modules)"
    assert run_python(code) == "False"


def test_nothing_brings_tensorflow_or_torch() -> None:
    code = (
        "import sys, dnw_jax.main, dnw_jax.train, dnw_jax.models.reference\n"
        "print([m for m in ('tensorflow', 'torch', 'sklearn') if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_public_names() -> None:
    assert list(dnw_jax.__all__) == sorted(dnw_jax.__all__)
    required = "build_model edge_mask load load_config load_reference top_edges wiring"
    assert {*required.split(), "UserError", "edge_budget", "__version__"} <= set(dnw_jax.__all__)
    for name in dnw_jax.__all__:
        value = getattr(dnw_jax, name)
        assert name in dir(dnw_jax)
        if name != "__version__":
            assert (inspect.getdoc(value) or "").strip(), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dnw_jax.nothing  # noqa: B018
    assert run_python("from dnw_jax import *; print(callable(build_model))") == "True"


def module_name(path: Path) -> str:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings(path: Path) -> None:
    """Every module, and every public function, class and method, says what it is."""
    tree = ast.parse(path.read_text())
    assert path.name == "version.py" or ast.get_docstring(tree)
    definitions = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, definitions) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{node.name} has no docstring"
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            documented = isinstance(inner, definitions) and not inner.name.startswith("_")
            assert not documented or ast.get_docstring(inner), inner.name


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if home(path) in ("edges", "graphs", "ops")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_public_functions_have_types(path: Path) -> None:
    """At run time: what the module itself defines, `jit` and `custom_vjp` unwrapped."""
    module = importlib.import_module(module_name(path))
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        assert inspect.getdoc(value), f"{name} has no docstring"
        if inspect.isfunction(value):
            hints = {**inspect.get_annotations(inspect.unwrap(value))}
            parameters = inspect.signature(value).parameters
            assert hints.keys() >= parameters.keys() | {"return"}, f"{name} lacks types"


def test_files_are_short() -> None:
    lengths = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 330} == {}


def attributes_read() -> set[str]:
    """Every attribute name that occurs in the package, `schema.py` left out."""
    nodes = [
        node
        for path in FILES
        if path.name != "schema.py"
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", sorted(schema.fields_of("tiny")))
def test_every_setting_is_read(name: str) -> None:
    assert name.rpartition(".")[2] in attributes_read()


def test_every_setting_of_every_model_is_known() -> None:
    for model, entry in schema.MODELS.items():
        assert set(schema.fields_of(model)) == schema.SHARED.keys() | entry.fields.keys()


@pytest.mark.parametrize("path", [*FILES, *CONFIGS], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_machine_paths_and_no_future_imports(path: Path) -> None:
    text = path.read_text()
    for banned in ("/work/", "/tmp/", "/home/", "from __future__"):
        assert banned not in text
