"""The error that is the user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """What was given cannot work: the message says what was asked, what was found, and what would work.

    Programs end with it as exit code 2, without a traceback. A full disk, a lost network or a mistake of ours is none of the
    user's, and stays the exception that it is. It is a ValueError because pydantic takes only that from a validator.
    """
