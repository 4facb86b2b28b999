"""Reads "file.py:key=value" and overrides into a complete, checked ConfigDict; JSON and back.

Imports no jax, so that a bad setting is reported at once. Between reading and checking, settings
are a flat dict with dotted names: {"model.sparsity": 0.9, ...}.
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
from dnw_jax.config.fields import convert, parse
from dnw_jax.errors import UserError

_DEFAULT_MODEL = schema.SHARED["model.name"].default
CONFIG_FILE = "config.json"  # the name of the file in a workdir


def load_config(
    spec: str | Path, overrides: Mapping[str, str] | Sequence[tuple[str, str]] = ()
) -> ConfigDict:
    """Returns the complete configuration of a run: the defaults, then the file, then the overrides.

    Args:
      spec: "path/to/file.py" or "path/to/file.py:key=value,key=value". The file defines
        `get_config`, which takes these arguments and returns the settings that differ from the
        defaults. Or "path/to/config.json" of a run.
      overrides: dotted field name -> text, such as "model.sparsity" -> "0.9". If a name occurs
        twice, the last text counts.

    Returns:
      A locked ConfigDict with every field of `dnw_jax.config.schema`, all valid.

    Raises:
      UserError: the file is missing or fails, or arguments or fields are wrong. The message lists
        all of them, each with its value and what is allowed.
    """
    spec = str(spec)
    values = _flatten(_read_json(Path(spec)) if spec.endswith(".json") else _run_file(spec))
    texts = dict(overrides)
    fields = schema.fields_of(texts.get("model.name", values.get("model.name", _DEFAULT_MODEL)))
    for name, text in texts.items():
        values[name] = parse(text, fields[name].kind) if name in fields else text
    return _complete(values, source=spec)


def validate(config: ConfigDict) -> None:
    """Checks every field of a complete configuration.

    Raises:
      UserError: fields are unknown, missing, of a wrong type or out of range, or contradict each
        other. The message lists all of them, each with its value and what is allowed.
    """
    _raise_problems("the configuration", _problems(_flatten(config.to_dict())))


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON text, which `from_json` reads back."""
    return config.to_json(indent=2) + "\n"


def from_json(text: str, source: str = "config.json") -> ConfigDict:
    """Returns the configuration that `to_json` wrote. Absent fields get their defaults.

    Raises:
      UserError: `text` is not JSON or not a valid configuration. The message begins with `source`.
    """
    return _complete(_flatten(_json_object(text, source)), source)


def differing_fields(a: ConfigDict, b: ConfigDict) -> dict[str, str]:
    """Returns the fields that differ: {field: "field: value in a != value in b"}."""
    left, right = _flatten(a.to_dict()), _flatten(b.to_dict())
    return {
        name: f"{name}: {_value_text(left, name)} != {_value_text(right, name)}"
        for name in sorted(left.keys() | right.keys())
        if _value_text(left, name) != _value_text(right, name)
    }


def _complete(values: Mapping[str, Any], source: str) -> ConfigDict:
    fields = schema.fields_of(values.get("model.name", _DEFAULT_MODEL))
    complete = {name: field.default for name, field in fields.items()}
    for name, value in values.items():
        complete[name] = fields[name].convert(value) if name in fields else value
    _raise_problems(source, _problems(complete))
    return ConfigDict(_unflatten(complete)).lock()


def _problems(values: Mapping[str, Any]) -> list[str]:
    fields = schema.fields_of(values.get("model.name"))
    unknown = {
        name: f"{name} = {value!r}: {_no_such_field(name, fields)}"
        for name, value in values.items()
        if name not in fields
    }
    invalid = {
        name: f"{name} = {_value_text(values, name)}: must be {field.allowed}"
        for name, field in fields.items()
        if name not in values or not field.accepts(values[name])
    }
    contradictions = []
    for constraint in schema.constraints_of(values.get("model.name")):
        if any(name in invalid for name in constraint.fields):
            continue
        if not constraint.holds(*(values[name] for name in constraint.fields)):
            settings = ", ".join(f"{name} = {values[name]!r}" for name in constraint.fields)
            contradictions.append(f"{settings}: {constraint.allowed}")
    return [*unknown.values(), *invalid.values(), *contradictions]


def _no_such_field(name: str, fields: Iterable[str]) -> str:
    section_fields = [field for field in fields if field.startswith(name + ".")]
    if section_fields:
        return "a section, not a field; its fields are " + ", ".join(section_fields)
    # Users often leave out the section.
    last_part = name.rpartition(".")[2]
    similar = [field for field in fields if field.rpartition(".")[2] == last_part]
    similar = similar or difflib.get_close_matches(name, fields, cutoff=0.75)
    if similar:
        return "no such field; did you mean " + " or ".join(similar) + "?"
    lines = textwrap.wrap(", ".join(fields), 92)
    return "\n    ".join(["no such field; the fields are", *lines])


def _raise_problems(source: str, problems: Sequence[str]) -> None:
    if problems:
        raise UserError("\n  ".join([f"{source} cannot be used:", *problems]))


def _value_text(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "missing"


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        # Keeps an empty section, so that it is reported and not ignored.
        flat |= _flatten(value, name + ".") if isinstance(value, dict) and value else {name: value}
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
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
            f"{path}: no such file, so {path.parent} holds no run. First train one there: "
            f"python -m dnw_jax.main --config=configs/digits.py --workdir={path.parent}"
        )
    return _json_object(path.read_text(encoding="utf-8"), str(path))


def _run_file(spec: str) -> dict[str, Any]:
    name, _, arguments = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--config={path}: no such file; {_suggested_files(path)}")
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {_with_line(error, path)}") from error
    get_config = namespace.get("get_config")
    if not callable(get_config):
        raise UserError(f"{path} defines no function get_config; {_suggested_files(path)}")
    keywords = _read_arguments(path, arguments, get_config)
    try:
        config = get_config(**keywords)
    except Exception as error:
        raise UserError(f"get_config of {path} failed: {_with_line(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} returned {config!r}; it must return a ConfigDict")
    return config.to_dict()


def _suggested_files(path: Path) -> str:
    for folder in (path.parent, Path("configs")):
        names = sorted(file.name for file in folder.glob("*.py") if file.name != path.name)
        if suggested := difflib.get_close_matches(path.name, names) or names:
            return "did you mean " + " or ".join(str(folder / name) for name in suggested) + "?"
    return f"{path.parent.resolve()} and configs hold no config files"


def _with_line(error: Exception, path: Path) -> str:
    """Returns the text of an error, with the last line of the config file that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = f"line {lines[-1]}: " if lines else ""
    return f"{line}{type(error).__name__}: {error}"


def _read_arguments(path: Path, text: str, get_config: Callable[..., Any]) -> dict[str, Any]:
    """Returns the arguments in "key=value,key=value", each with the type of its default."""
    parameters = inspect.signature(get_config).parameters
    required = [name for name, param in parameters.items() if param.default is param.empty]
    if required:
        raise UserError(
            f"get_config of {path}: its parameters {', '.join(required)} need default values"
        )
    keywords: dict[str, Any] = {}
    problems = []
    for argument in text.split(",") if text else ():
        name, equals, value = argument.partition("=")
        if not equals:
            problems.append(f"{argument!r} is not of the form key=value")
        elif name not in parameters:
            problems.append(f"{argument}: no such argument")
        elif name in keywords:
            problems.append(f"{argument}: {name} is given twice")
        else:
            kind = type(parameters[name].default)
            keywords[name] = convert(parse(value, kind), kind)
            if type(keywords[name]) is not kind:
                problems.append(f"{argument}: must be of type {kind.__name__}")
    if problems:
        takes = ", ".join(map(str, parameters.values())) or "no arguments"
        problems.append(f"{path} takes: {takes}")
    _raise_problems(f"{path}:{text}", problems)
    return keywords
