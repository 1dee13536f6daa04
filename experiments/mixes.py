"""Mixes as the user of a command writes them: `optimizers.mixes`, whose complaints are the user's to mend."""

import optimizers.mixes
from experiments.errors import UserError
from optimizers.mixes import Mix

__all__ = ["Mix", "parse"]


def parse(text: str) -> list[Mix]:
    """The mixes in a list such as `adam, radamw(nesterov=True)+lookahead`; UserError for what is no mix."""
    try:
        return optimizers.mixes.parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error
