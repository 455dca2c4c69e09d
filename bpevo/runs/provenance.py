"""Where a run's numbers come from: versions and machine."""

import importlib.metadata
import os
import platform

import jax

from bpevo.training import usable_cpus

MACHINE = ("device", "cores", "matmul precision", "XLA_FLAGS")  # of `versions`: what is no release


def versions() -> dict[str, str]:
    """Versions and machine, as stored with a run."""
    packages = ("bpevo", "jax", "jaxlib", "flax", "optax", "numpy")

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    devices = jax.local_devices()
    xla_flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    return {"python": platform.python_version(), **{n: version(n) for n in packages}} | {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": str(usable_cpus()),
        "matmul precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
        "XLA_FLAGS": " ".join(sorted(xla_flags)),
    }


def changed_numerics(before: dict[str, str], now: dict[str, str]) -> str:
    """What of `versions` differs and may change bits; the number of devices and cores does not."""

    def kinds(versions: dict[str, str]) -> dict[str, str]:
        shown = {n: versions.get(n, "unknown") for n in ("bpevo", "jax", "jaxlib", "flax", "optax")}
        shown |= {"device": versions.get("device", "").partition(" x ")[2] or "unknown"}
        shown |= {"matmul precision": versions.get("matmul precision", "default")}
        return shown | {"XLA_FLAGS": versions.get("XLA_FLAGS") or "none"}

    old, new = kinds(before), kinds(now)
    return "; ".join(f"{n} {old[n]} then, {new[n]} now" for n in new if old[n] != new[n])
