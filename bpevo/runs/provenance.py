"""Where a run's numbers come from: versions and machine."""

import importlib.metadata
import os
import platform

import jax


def versions() -> dict[str, str]:
    """Versions and machine, as stored with a run."""
    packages = ("bpevo", "jax", "jaxlib", "flax", "optax", "numpy")

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    devices = jax.local_devices()
    return {"python": platform.python_version(), **{n: version(n) for n in packages}} | {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": str(os.cpu_count()),
    }


def changed_numerics(before: dict[str, str], now: dict[str, str]) -> str:
    """What of `versions` differs and may change bits; the number of devices and cores does not."""

    def kinds(versions: dict[str, str]) -> dict[str, str]:
        names = ("bpevo", "jax", "jaxlib", "flax", "optax")
        return {n: versions.get(n, "") for n in names} | {"device": versions.get("device", "").partition(" x ")[2]}

    old, new = kinds(before), kinds(now)
    return "; ".join(f"{n} {old[n] or 'unknown'} then, {new[n]} now" for n in new if old[n] != new[n])
