"""Errors that are the user's to mend: the command line prints them as one line, without a traceback."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do about it."""


class DataError(UserError):
    """A data set is missing, damaged, or not the one that it claims to be."""


class RecordError(UserError):
    """A record is damaged, was edited by hand, or does not hold what was asked of it."""


class ClaimError(UserError):
    """A claims file has a mistake."""
