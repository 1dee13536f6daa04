"""What the user of a study can mend: the command prints it as one line, without a traceback."""


class StudyError(Exception):
    """A study cannot go on. The message is one line that says what is wrong, where, and how to mend it."""


class ProblemError(StudyError):
    """The problem itself fails, whatever the optimizer: every run of it would."""
