"""The error for everything that a user can correct, and a part of its message."""

from collections.abc import Mapping


class UserError(ValueError):
    """Bad input: a setting, a file or a dataset that the user can correct.

    The message names the field, its value, what is allowed and how to correct it. The command line
    prints the message without a stack trace. Bugs of this package raise ordinary exceptions.
    """


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Returns a line of a message for each name whose entries differ, sorted by name."""
    return [
        f"  {name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]
