"""The error of this room, and how foreign text is shown."""


class RunError(RuntimeError):
    """The workdir cannot be used; the message says why and what to do."""


def printable(text: str) -> str:
    """`text` with what would control a terminal written as escapes; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
