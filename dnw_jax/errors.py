"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """Bad input: a setting, a file or a dataset that the user can put right.

    The message names the field, its value, what is allowed and how to mend it; the command line
    prints it alone, without a stack trace. Errors of our own making stay ordinary exceptions.
    """
