"""Names of the user's own Python: `package.module:attribute`, from whatever Python imports, the current folder included."""

import importlib
import importlib.util
import traceback
from typing import Any


def attribute(text: str, what: str) -> Any:
    """What `package.module:attribute` names; `what` says for messages what it is for: "model", "dataset".

    Raises ValueError.
    """
    module, _, name = text.partition(":")
    written = f"--{what}={text}"
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"{written}: write package.module:name, as in my_project.networks:build")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(
                f"{written}: there is no module {error.name}; start where it can be imported, or set PYTHONPATH"
            ) from error
        raise ValueError(f"{written}: {module} cannot be imported: {first_line(error)}") from error
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{written}: {module} cannot be imported: {first_line(error)}") from error
    if not hasattr(loaded, name):
        raise ValueError(f"{written}: the module {module} has no {name}")
    return getattr(loaded, name)


def first_line(error: BaseException) -> str:
    """Type and first line of an error's message, and the user's line that raised it."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if "site-packages" not in f.filename and "/bpevo/" not in f.filename]
    return f"{text} ({own[-1].filename}, line {own[-1].lineno})" if own else text
