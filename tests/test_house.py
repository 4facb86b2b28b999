"""The rules of the package: which folder imports which, public names, docstrings, types, words."""

import ast
import functools
import importlib
import inspect
import re
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

# The folders and top-level modules from top to bottom. Each imports only from itself and from those
# below it. ARCHITECTURE.md draws them.
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
TOP_LEVEL_MODULES = {"__init__", "main", "errors", "version"}
# Layers below a folder that it must not import, either.
FORBIDDEN_LAYERS = {
    "deploy": {"data", "platform", "show"},
    "show": {"models", "graphs", "data", "edges", "ops", "platform", "config"},
    "models": {"data", "platform"},
    "graphs": {"data", "platform", "errors"},
    "data": {"edges", "ops", "platform"},
    "edges": {"platform", "config", "errors"},
    "ops": {"platform", "config", "errors"},
    "platform": {"config"},
}
STANDARD_LIBRARY = set(sys.stdlib_module_names)
# The only other libraries that these layers may import.
ALLOWED_LIBRARIES = {
    "ops": {"diffrax", "jax", "jaxtyping"},
    "edges": {"jax", "jaxtyping", "numpy"},
    "graphs": {"flax", "jax", "jaxtyping", "numpy"},
    "show": {"jaxtyping", "numpy"},
    "config": {"ml_collections"},
    "errors": set(),
    "version": set(),
}
# Libraries that only one folder or file may import.
ONLY_IMPORTED_BY = {
    "orbax": "run/checkpoint.py",
    "diffrax": "ops/runge_kutta.py",
    "tensorboardX": "run/writers.py",
    "cv2": "data/",
    "grain": "data/",
    "simplejpeg": "data/",
}
# Optional or slow libraries: functions import them when they need them.
NEVER_AT_MODULE_LEVEL = {
    "simplejpeg",
    "cv2",
    "grain",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=relative)
each_config = pytest.mark.parametrize("path", CONFIGS, ids=relative)


def layer_of(path: Path) -> str:
    """The folder, or the top-level module, that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_names(path: Path, module_level_only: bool = False) -> set[str]:
    """Dotted names: `from dnw_jax import data` imports "dnw_jax.data"."""
    tree = tree_of(path)
    names = set()
    for node in tree.body if module_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_layers(path: Path) -> set[str]:
    names = [name.split(".") for name in imported_names(path)]
    return {parts[1] for parts in names if parts[0] == "dnw_jax" and len(parts) > 1}


def imported_libraries(path: Path, module_level_only: bool = False) -> set[str]:
    names = imported_names(path, module_level_only)
    return {name.split(".")[0] for name in names} - {"dnw_jax"} - STANDARD_LIBRARY


# Imports.


def test_every_folder_is_a_layer() -> None:
    assert {layer_of(path) for path in FILES} == {"__init__", *LAYERS}
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP_LEVEL_MODULES


@each_file
def test_imports_point_downwards(path: Path) -> None:
    layer = layer_of(path)
    below = set() if layer == "__init__" else set(LAYERS[LAYERS.index(layer) :])
    for imported in imported_layers(path):
        assert imported in below, f"{relative(path)} imports dnw_jax.{imported}, a layer above it"
        assert imported not in FORBIDDEN_LAYERS.get(layer, ()), (
            f"{relative(path)} imports dnw_jax.{imported}, which {layer}/ must not need"
        )


@each_file
def test_libraries_stay_in_their_place(path: Path) -> None:
    layer = layer_of(path)
    for library in imported_libraries(path):
        assert library in ALLOWED_LIBRARIES.get(layer, {library}), (
            f"{relative(path)} imports {library}; {layer} may import only "
            f"{sorted(ALLOWED_LIBRARIES[layer])}"
        )
        owner = f"dnw_jax/{ONLY_IMPORTED_BY.get(library, '')}"
        assert relative(path).startswith(owner), (
            f"{relative(path)} imports {library}; only {owner} may"
        )
    for library in imported_libraries(path, module_level_only=True):
        assert library not in NEVER_AT_MODULE_LEVEL, (
            f"{relative(path)} imports {library} at module level; import it where it is used"
        )


@each_config
def test_configs_import_only_ml_collections(path: Path) -> None:
    assert imported_names(path) == {"ml_collections.ConfigDict"}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_settings_are_checked_without_importing_jax() -> None:
    code = (
        "import sys, dnw_jax.main\n"
        "from dnw_jax import load_config, UserError\n"
        "print('jax' in sys.modules)"
    )
    assert run_python(code) == "False"


def test_importing_the_package_imports_no_optional_library() -> None:
    code = (
        "import sys\n"
        "import dnw_jax.main, dnw_jax.train\n"
        "from dnw_jax import *\n"
        "print(callable(build_model), callable(load_reference))\n"
        "print([m for m in ('tensorflow', 'torch', 'sklearn', 'grain') if m in sys.modules])"
    )
    assert run_python(code).splitlines() == ["True True", "[]"]


# Public names.


def test_public_names() -> None:
    assert list(dnw_jax.__all__) == sorted(dnw_jax.__all__)
    required = "build_model edge_mask load load_config load_reference top_edges wiring"
    assert {*required.split(), "UserError", "edge_budget", "__version__"} <= set(dnw_jax.__all__)
    assert set(dnw_jax.__all__) <= set(dir(dnw_jax))
    for name in dnw_jax.__all__:
        value = getattr(dnw_jax, name)
        assert name == "__version__" or inspect.getdoc(value), f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'unknown_name'"):
        dnw_jax.unknown_name  # noqa: B018


def test_type_checkers_see_every_public_name() -> None:
    """They take only `import x as x` in a stub for a public name."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    for statement in stub.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, f"__init__.pyi: {alias.name} as {alias.asname}"


# Docstrings and types.


@each_file
def test_docstrings(path: Path) -> None:
    """Every module, and every public function, class and method, has one."""
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{relative(path)} has no docstring"
    definitions = (ast.FunctionDef, ast.ClassDef)
    for node in tree.body:
        if not isinstance(node, definitions) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{relative(path)}: {node.name} has no docstring"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, definitions) and not method.name.startswith("_"):
                assert ast.get_docstring(method), (
                    f"{relative(path)}: {node.name}.{method.name} has no docstring"
                )


@pytest.mark.parametrize(
    "path", [path for path in FILES if layer_of(path) in ("edges", "graphs", "ops")], ids=relative
)
def test_public_functions_have_types(path: Path) -> None:
    """At run time, because `jit` and `custom_vjp` wrap some of them."""
    module_name = relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = importlib.import_module(module_name)
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        assert inspect.getdoc(value), f"{module_name}.{name} has no docstring"
        if inspect.isfunction(value):
            types = inspect.get_annotations(inspect.unwrap(value))
            untyped = {*inspect.signature(value).parameters, "return"} - types.keys()
            assert not untyped, f"{module_name}.{name} lacks types: {sorted(untyped)}"


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 330} == {}


# Settings.


def test_every_setting_is_read() -> None:
    """As an attribute, somewhere in the package outside of config/schema.py."""
    attributes = {
        node.attr
        for path in FILES
        if path.name != "schema.py"
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
    }
    settings = {name for model in schema.MODELS for name in schema.fields_of(model)}
    assert {name for name in settings if name.rpartition(".")[2] not in attributes} == set()


def test_a_model_has_the_shared_settings_and_its_own() -> None:
    for name, model in schema.MODELS.items():
        assert schema.fields_of(name).keys() == schema.SHARED.keys() | model.fields.keys()


# Words.

PROSE = sorted(
    {
        *FILES,
        *CONFIGS,
        *(ROOT / "experiments").rglob("*.py"),
        *(ROOT / "experiments").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "ARCHITECTURE.md",
    }
)
# Plain English has a simpler word for each: again, must, ours, continues, reports.
FORBIDDEN_WORDS = re.compile(
    r"\b(anew|shall|of\s+our\s+own|goes\s+on|(is|are)\s+told)\b", re.IGNORECASE
)


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    names = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py))`", text))
    assert len(names) > 20
    missing = {name for name in names if not ((PACKAGE / name).exists() or (ROOT / name).exists())}
    assert not missing


@pytest.mark.parametrize("path", PROSE, ids=relative)
def test_plain_english(path: Path) -> None:
    text = path.read_text()
    lines = [text[: match.start()].count("\n") + 1 for match in FORBIDDEN_WORDS.finditer(text)]
    words = [match[0] for match in FORBIDDEN_WORDS.finditer(text)]
    assert not words, f"{relative(path)}, lines {lines}: {words}"


@pytest.mark.parametrize("path", [*FILES, *CONFIGS], ids=relative)
def test_no_machine_paths_and_no_future_imports(path: Path) -> None:
    for banned in ("/work/", "/tmp/", "/home/", "from __future__"):
        assert banned not in path.read_text(), f"{relative(path)} contains {banned!r}"
