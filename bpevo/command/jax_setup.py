"""The set-up of jax for commands; importing it before jax loads silences XLA. A library's user keeps their own."""

# ruff: noqa: E402
import logging
import os
import pathlib

# Before jax loads: XLA prints pages about each program of its own cache. Its failures come as exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

from bpevo.runs import RunError
from bpevo.training import usable_cpus

# What decides numbers, or whether programs run at all: fixed, whatever the environment says.
FIXED = {
    "jax_default_prng_impl": "threefry2x32",  # others give numbers that depend on a slot's neighbours
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_enable_x64": False,
    "jax_debug_nans": False,  # a candidate that diverges is no error
    "jax_debug_infs": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_debug_key_reuse": False,
}


def not_heeded() -> dict[str, str]:
    """Environment variables that say otherwise than FIXED, with what holds instead."""

    def differs(name: str, value: object) -> bool:
        text = os.environ.get(name.upper(), "").strip().lower()
        if isinstance(value, bool):
            return bool(text) and (text in ("1", "true", "t", "yes", "y", "on")) != value
        return bool(text) and text != str(value).lower()

    return {name.upper(): str(value) for name, value in FIXED.items() if differs(name, value)}


def cache_folder() -> pathlib.Path | None:
    """Where compiled programs are kept between starts; None where no home directory is known."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if base.startswith("~") else pathlib.Path(base) / "bpevo" / "jax"


def configure_jax(leave_accelerators: bool = False) -> None:
    """A device per core where there is no accelerator, and a persistent compilation cache. Before any other use of jax.

    With `leave_accelerators` this process takes none: others on this machine train on them. Raises RunError if jax has no
    device to run on.
    """
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # tells which backends are absent
    for name, value in FIXED.items():
        jax.config.update(name, value)
    if leave_accelerators:
        jax.config.update("jax_platforms", "cpu")
    if not os.environ.get("JAX_NUM_CPU_DEVICES") and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", usable_cpus())
    cache = cache_folder()
    if cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a platform is asked for whose plugin is missing
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"jax finds no device{f' for JAX_PLATFORMS={asked}' if asked else ''}{f': {reason}' if reason else ''}; unset "
            "JAX_PLATFORMS, or install what that device needs: pip install '.[cuda12]', '.[cuda13]' or '.[tpu]'"
        ) from None
