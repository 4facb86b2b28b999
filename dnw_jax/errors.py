"""The error for everything that a user can correct."""


class UserError(ValueError):
    """Bad input: a setting, a file or a dataset that the user can correct.

    The message names the field, its value, what is allowed and how to correct it. The command line
    prints the message without a stack trace. Bugs of this package raise ordinary exceptions.
    """
