"""Writing a report from a command."""

import os
import pathlib

import jax

from bpevo.runs import RunError


def write(workdir: str | os.PathLike, every: float | None = None) -> list[pathlib.Path]:
    """As bpevo.report.build.build, which takes a second to load; changes this process. Raises RunError."""
    # The kinds of rules are computed: one small program. Read from jax's cache, it would come with pages of XLA's log, which
    # nothing silences once jax is loaded.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ.pop("MPLBACKEND", None)  # a name that matplotlib does not know fails its import
    try:
        import matplotlib  # noqa: F401
    except (ImportError, ValueError) as error:
        raise RunError(f"matplotlib cannot be imported: {error}; check the matplotlibrc that it reads") from error
    from bpevo.report.build import build

    return build(workdir, every)
