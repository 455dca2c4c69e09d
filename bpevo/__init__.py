"""bpevo: a search for better equations than backprop. See README.md; start with `bpevo.rules.compile`.

>>> import bpevo
>>> print(bpevo.rules.compile("feedback_alignment"))
fa
"""

import importlib

__version__ = "0.1.0"
# From the ground up; each is imported when it is first asked for.
_ROOMS = (
    "rules",
    "layers",
    "models",
    "data",
    "training",
    "evolution",
    "workers",
    "runs",
    "search",
    "evaluation",
    "report",
)
# What people type, and where it is.
_NAMES = {
    "evolve": "layers",
    "Search": "command.python",
    "Evaluation": "command.python",
    "Funnel": "command.python",
    "open": "command.python",
}
__all__ = ["__version__", *_NAMES, *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"bpevo.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"bpevo.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'bpevo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
