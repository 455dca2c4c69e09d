"""Flag files: read here rather than by absl, as UTF-8 whatever the locale, with or without a byte order mark, bounded."""

from collections.abc import Sequence

MAX_BYTES = 10**6
MAX_DEPTH = 8
_NAMES = ("--flagfile", "-flagfile")


def expanded(arguments: Sequence[str], depth: int = 0) -> list[str]:
    """`arguments` with the flags of flag files in their place, before all others: what is given beside a file wins over it.

    Lines that are empty or start with # or // are skipped; a file may name others. Raises ValueError.
    """
    own: list[str] = []
    from_files: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            own += [argument, *rest]
            break
        name, equals, path = argument.partition("=")
        if name not in _NAMES:
            own.append(argument)
            continue
        if not equals:
            if not rest:
                raise ValueError("--flagfile needs a path: --flagfile=launch/quickstart.flags")
            path = rest.pop(0)
        from_files[0:0] = expanded(_lines(path, depth), depth + 1)
    return [*from_files, *own]


def _lines(path: str, depth: int) -> list[str]:
    if depth >= MAX_DEPTH:
        raise ValueError(f"flag files name each other more than {MAX_DEPTH} deep, the last is {path}")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot read the flag file {path}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"the flag file {path} is longer than {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the flag file {path} is not a UTF-8 text: {error.reason} at byte {error.start}") from None
    lines = map(str.strip, text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "//"))]
