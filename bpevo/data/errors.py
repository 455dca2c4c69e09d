"""The one exception of this room."""


class DataError(ValueError):
    """A dataset is unknown, missing, truncated or wrong; the message names the place, the fault and the repair."""


def brief(error: BaseException) -> str:
    """The first line of `error`'s message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
