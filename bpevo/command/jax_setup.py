"""The set-up of jax for commands; importing it before jax loads silences XLA. A library's user keeps their own."""

# ruff: noqa: E402
import logging
import os

# Before jax loads: XLA prints pages about each program of its own cache. Its failures come as exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax


def configure_jax() -> None:
    """A device per core where there is no accelerator, and a persistent compilation cache. Before any other use of jax."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # tells which backends are absent
    if not os.environ.get("JAX_NUM_CPU_DEVICES") and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "bpevo", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
