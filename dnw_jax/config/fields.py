"""The kinds of settings: type, allowed values, and how a command line's text is read."""

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def parse(text: Any, kind: type) -> Any:
    """Returns `text`, as a command line gives it, as a value of `kind`.

    Text that cannot be read is returned as it is, for the check of the field to report it. So is a
    value that is not a string.
    """
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


def convert(value: Any, kind: type) -> Any:
    """Returns an integer as a float and a list as a tuple where `kind` asks for it."""
    if kind is float and type(value) is int and abs(value) < 2**53:  # exact as a float
        return float(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    return value


@dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      default: the value if nobody sets the field.
      kind: the type.
      allowed: the allowed values, in words; error messages say "must be {allowed}".
      check: whether a value of type `kind` is allowed.
      item: the type of each element if `kind` is tuple.
      optional: whether the value may be None.
    """

    default: Any
    kind: type
    allowed: str
    check: Callable[[Any], bool] = lambda value: True
    item: type | None = None
    optional: bool = False

    def convert(self, value: Any) -> Any:
        """Returns the value as a configuration stores it: see the function `convert`."""
        value = convert(value, self.kind)
        if self.item is not None and isinstance(value, tuple):
            return tuple(convert(element, self.item) for element in value)
        return value

    def accepts(self, value: Any) -> bool:
        """Returns whether `value` has the right type and is allowed. True is not an integer."""
        if value is None:
            return self.optional
        # By exact type: bool is a subclass of int.
        if type(value) is not self.kind:
            return False
        elements: Any = value if self.item is not None else ()
        return all(type(element) is self.item for element in elements) and self.check(value)


def integer(default: int | None, at_least: int) -> Field:
    """Returns a field for a whole number; a default of None makes it optional."""
    allowed = f"an integer >= {at_least}" + (" or None" if default is None else "")
    return Field(default, int, allowed, lambda n: n >= at_least, optional=default is None)


def number(default: float, allowed: str, check: Callable[[float], bool]) -> Field:
    """Returns a field for a finite real number."""
    return Field(default, float, f"a number {allowed}", lambda x: math.isfinite(x) and check(x))


def at_least_0(default: float) -> Field:
    """Returns a field for a finite real number >= 0."""
    return number(default, ">= 0", lambda x: x >= 0)


def fraction(default: float) -> Field:
    """Returns a field for a real number in [0, 1)."""
    return number(default, "in [0, 1)", lambda x: 0 <= x < 1)


def positive(default: float) -> Field:
    """Returns a field for a finite real number > 0."""
    return number(default, "> 0", lambda x: x > 0)


def choice(default: str, *others: str) -> Field:
    """Returns a field for one of a few names."""
    names = (default, *others)
    return Field(default, str, "one of " + ", ".join(names), lambda name: name in names)


def flag(default: bool) -> Field:
    """Returns a field for true or false."""
    return Field(default, bool, "true or false")


@dataclass(frozen=True)
class Constraint:
    """A condition that several settings must satisfy together.

    Attributes:
      fields: the names of the settings.
      allowed: the condition in words, for the error message.
      holds: takes the values of the settings in order.
    """

    fields: tuple[str, ...]
    allowed: str
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Model:
    """The settings of one model that the other models lack, and their constraints."""

    fields: Mapping[str, Field]
    constraints: tuple[Constraint, ...] = ()
