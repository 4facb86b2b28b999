"""What a setting may be: its type, what is allowed, and how it reads on a command line."""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def from_text(text: Any, kind: type) -> Any:
    """A command line's text as a value of `kind`; text that cannot be one, or no text, stays."""
    if kind is str or not isinstance(text, str):
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if text.lower() == "none":
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text
    return (value,) if kind is tuple and type(value) in (int, float) else value


def as_kind(value: Any, kind: type) -> Any:
    """An integer given for a float as a float, a list given for a tuple as a tuple."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    return value


@dataclass(frozen=True)
class Field:
    """One setting: what it is when nobody sets it, and what it may be.

    `allowed` says in words what `check` tests; `check` sees values of `kind` only. With `item`,
    `kind` is tuple and each of its elements is an `item`. An `optional` field may be None.
    """

    default: Any
    kind: type
    allowed: str
    check: Callable[[Any], bool] = lambda value: True
    item: type | None = None
    optional: bool = False

    def normalised(self, value: Any) -> Any:
        """The value as it is stored: see `as_kind`."""
        value = as_kind(value, self.kind)
        if self.item is not None and isinstance(value, tuple):
            return tuple(as_kind(element, self.item) for element in value)
        return value

    def accepts(self, value: Any) -> bool:
        """Whether `value` is of the right type (True is no integer) and in range."""
        if value is None:
            return self.optional
        # By exact type: bool is a subclass of int.
        if type(value) is not self.kind:
            return False
        elements: Any = value if self.item is not None else ()
        return all(type(element) is self.item for element in elements) and self.check(value)


def integer(default: int | None, at_least: int) -> Field:
    """A whole number; a default of None makes the field optional."""
    allowed = f"an integer >= {at_least}" + (" or None" if default is None else "")
    return Field(default, int, allowed, lambda n: n >= at_least, optional=default is None)


def number(default: float, allowed: str, check: Callable[[float], bool]) -> Field:
    """A finite real number."""
    return Field(default, float, f"a number {allowed}", lambda x: math.isfinite(x) and check(x))


def at_least_0(default: float) -> Field:
    """A finite real number that is not negative."""
    return number(default, ">= 0", lambda x: x >= 0)


def fraction(default: float) -> Field:
    """A real number from 0 up to, but not, 1."""
    return number(default, "in [0, 1)", lambda x: 0 <= x < 1)


def positive(default: float) -> Field:
    """A finite real number above 0."""
    return number(default, "> 0", lambda x: x > 0)


def choice(default: str, *others: str) -> Field:
    """One of a few names."""
    names = (default, *others)
    return Field(default, str, "one of " + ", ".join(names), lambda name: name in names)


def flag(default: bool) -> Field:
    """True or false."""
    return Field(default, bool, "true or false")


@dataclass(frozen=True)
class Rule:
    """What several settings must satisfy together; `holds` takes their values in order."""

    fields: tuple[str, ...]
    allowed: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Model:
    """The settings that only one model has."""

    fields: Mapping[str, Field]
    rules: tuple[Rule, ...] = ()
