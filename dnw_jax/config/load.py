"""From "file.py:key=value" and overrides to a complete, checked ConfigDict, and to JSON and back.

Imports no jax, so that a bad setting is reported at once.
"""

import difflib
import inspect
import json
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dnw_jax.config import schema
from dnw_jax.config.fields import as_kind, from_text
from dnw_jax.errors import UserError

_DEFAULT_MODEL = schema.SHARED["model.name"].default
CONFIG_FILE = "config.json"  # as a run leaves it in its workdir


def load_config(
    spec: str | Path, overrides: Mapping[str, str] | Sequence[tuple[str, str]] = ()
) -> ConfigDict:
    """The complete configuration of a run: the defaults, then the file, then the overrides.

    Args:
      spec: "path/to/file.py" or "path/to/file.py:key=value,key=value"; the file defines
        `get_config`, which takes these arguments and returns what differs from the defaults. Or
        "path/to/config.json" of a run.
      overrides: dotted field name -> text, such as "model.sparsity" -> "0.9"; the last one counts.

    Returns:
      A locked ConfigDict with every field of `dnw_jax.config.schema`, all valid.

    Raises:
      UserError: a missing or broken file, a wrong argument, or a wrong field: all of them, each
        with its value and what is allowed.
    """
    spec = str(spec)
    values = _flat(_read_json(Path(spec)) if spec.endswith(".json") else _run_file(spec))
    texts = dict(overrides)
    fields = schema.fields_of(texts.get("model.name", values.get("model.name", _DEFAULT_MODEL)))
    for name, text in texts.items():
        values[name] = from_text(text, fields[name].kind) if name in fields else text
    return _complete(values, source=spec)


def validate(config: ConfigDict) -> None:
    """Checks every field of a complete configuration.

    Raises:
      UserError: fields that are unknown, missing, of a wrong type or out of range, or that
        contradict each other: all of them, each with its value and what is allowed.
    """
    _refuse("the configuration", _problems(_flat(config.to_dict())))


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text, which `from_json` reads back."""
    return config.to_json(indent=2) + "\n"


def from_json(text: str, source: str = "config.json") -> ConfigDict:
    """The configuration that `to_json` wrote; absent fields get their defaults.

    Raises:
      UserError: no JSON, or not a valid configuration; the message begins with `source`.
    """
    return _complete(_flat(_json_object(text, source)), source)


def differing_fields(a: ConfigDict, b: ConfigDict) -> dict[str, str]:
    """What differs between two configs: {field: "field: value in a != value in b"}."""
    left, right = _flat(a.to_dict()), _flat(b.to_dict())
    return {
        name: f"{name}: {_shown(left, name)} != {_shown(right, name)}"
        for name in sorted(left.keys() | right.keys())
        if _shown(left, name) != _shown(right, name)
    }


def _complete(values: Mapping[str, Any], source: str) -> ConfigDict:
    fields = schema.fields_of(values.get("model.name", _DEFAULT_MODEL))
    complete = {name: field.default for name, field in fields.items()}
    for name, value in values.items():
        complete[name] = fields[name].normalised(value) if name in fields else value
    _refuse(source, _problems(complete))
    return ConfigDict(_nested(complete)).lock()


def _problems(values: Mapping[str, Any]) -> list[str]:
    fields = schema.fields_of(values.get("model.name"))
    unknown = {
        name: f"{name} = {value!r}: {_no_such_field(name, fields)}"
        for name, value in values.items()
        if name not in fields
    }
    bad = {
        name: f"{name} = {_shown(values, name)}: must be {field.allowed}"
        for name, field in fields.items()
        if name not in values or not field.accepts(values[name])
    }
    broken = []
    for rule in schema.rules_of(values.get("model.name")):
        if any(name in bad for name in rule.fields):
            continue
        if not rule.holds(*(values[name] for name in rule.fields)):
            together = ", ".join(f"{name} = {values[name]!r}" for name in rule.fields)
            broken.append(f"{together}: {rule.allowed}")
    return [*unknown.values(), *bad.values(), *broken]


def _no_such_field(name: str, fields: Iterable[str]) -> str:
    inside = [field for field in fields if field.startswith(name + ".")]
    if inside:
        return "a section, not a field; its fields are " + ", ".join(inside)
    # Often the section was left out, and the rest is right.
    last = name.rpartition(".")[2]
    close = [field for field in fields if field.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(name, fields, cutoff=0.75)
    if close:
        return "no such field; did you mean " + " or ".join(close) + "?"
    return "no such field; there are\n    " + "\n    ".join(textwrap.wrap(", ".join(fields), 92))


def _refuse(source: str, problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n  ".join([f"{source} cannot be used:", *problems]))


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "missing"


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        # An empty section stays, to be named as a problem rather than ignored.
        flat |= _flat(value, name + ".") if isinstance(value, dict) and value else {name: value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, leaf = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return nested


def _json_object(text: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source} holds {values!r}; it must hold an object of fields")
    return values


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, so {path.parent} holds no run. Train one there first: "
            f"python -m dnw_jax.main --config=configs/digits.py --workdir={path.parent}"
        )
    return _json_object(path.read_text(encoding="utf-8"), str(path))


def _run_file(spec: str) -> dict[str, Any]:
    name, _, arguments = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--config={path}: no such file; {_near_files(path)}")
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {_located(error, path)}") from error
    get_config = namespace.get("get_config")
    if not callable(get_config):
        raise UserError(f"{path} defines no function get_config; {_near_files(path)}")
    keywords = _read_arguments(path, arguments, get_config)
    try:
        config = get_config(**keywords)
    except Exception as error:
        raise UserError(f"get_config of {path} failed: {_located(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returned {config!r}; it must return a ConfigDict")
    return config.to_dict()


def _near_files(path: Path) -> str:
    for folder in (path.parent, Path("configs")):
        names = sorted(file.name for file in folder.glob("*.py") if file.name != path.name)
        if near := difflib.get_close_matches(path.name, names) or names:
            return "there are " + ", ".join(str(folder / name) for name in near)
    return f"there are no config files in {path.parent.resolve()} or configs"


def _located(error: Exception, path: Path) -> str:
    """The error with the last line of the config file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _read_arguments(path: Path, text: str, get_config: Callable[..., Any]) -> dict[str, Any]:
    """The arguments "key=value,key=value" of `get_config`, each of its default's type."""
    parameters = inspect.signature(get_config).parameters
    without = [name for name, each in parameters.items() if each.default is each.empty]
    if without:
        raise UserError(
            f"get_config of {path}: its parameters {', '.join(without)} need default values"
        )
    keywords: dict[str, Any] = {}
    problems = []
    for argument in text.split(",") if text else ():
        name, equals, value = argument.partition("=")
        if not equals:
            problems.append(f"{argument!r} is not of the form key=value")
        elif name not in parameters:
            problems.append(f"{argument}: there is no argument {name!r}")
        elif name in keywords:
            problems.append(f"{argument}: the argument {name!r} is given twice")
        else:
            kind = type(parameters[name].default)
            keywords[name] = as_kind(from_text(value, kind), kind)
            if type(keywords[name]) is not kind:
                problems.append(f"{argument}: must be of type {kind.__name__}")
    if problems:
        takes = ", ".join(map(str, parameters.values())) or "no arguments"
        problems.append(f"{path} takes: {takes}")
    _refuse(f"{path}:{text}", problems)
    return keywords
