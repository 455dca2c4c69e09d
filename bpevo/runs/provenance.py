"""Where a run's numbers come from: versions and machine."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
import types
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from bpevo.rules import extensions
from bpevo.rules.components import Component
from bpevo.training import usable_cpus
from bpevo.training.kernel import kernel_of

MACHINE = ("device", "cores", "matmul precision", "XLA_FLAGS", "registered")  # of `versions`: what is no release


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
        "registered": " ".join(f"{c.name}:{_checksum(c):08x}" for c in extensions()),
        "rules": kernel_of(devices[0]).said or "on tiles",
    }


def registered(versions: dict[str, str]) -> list[str]:
    """Names of the components that had been registered, of `versions`."""
    return [entry.partition(":")[0] for entry in versions.get("registered", "").split()]


def _checksum(component: Component) -> int:
    """A checksum of what a registered component says and of its functions' code, as this Python compiles them, with the
    values that they were made with: defaults, variables around them, arguments of a `functools.partial`."""
    known = set[int]()  # a function may hold itself

    def said(value: Any) -> Any:
        if isinstance(value, types.CodeType):
            return value.co_code, value.co_names, [said(constant) for constant in value.co_consts]
        if isinstance(value, types.FunctionType):
            if id(value) in known:
                return value.__name__
            known.add(id(value))
            cells = [said(cell.cell_contents) for cell in value.__closure__ or ()]
            return said(value.__code__), cells, said(value.__defaults__), said(value.__kwdefaults__)
        if isinstance(value, functools.partial):
            return said(value.func), said(value.args), said(value.keywords)
        if isinstance(value, tuple | list):
            return [said(item) for item in value]
        if isinstance(value, dict):
            return [(key, said(item)) for key, item in value.items()]
        return getattr(value, "__name__", value)

    fields = [said(getattr(component, f.name)) for f in dataclasses.fields(component)]
    return zlib.crc32(re.sub(r" at 0x[0-9a-f]+", "", repr(fields)).encode())  # addresses are of this process


def numerics(versions: Mapping[str, str]) -> dict[str, str]:
    """What of `versions` may change bits: releases and the kind of device, not how many."""
    shown = {n: versions.get(n, "unknown") for n in ("bpevo", "jax", "jaxlib", "flax", "optax")}
    shown |= {"device": versions.get("device", "").partition(" x ")[2] or "unknown"}
    shown |= {"matmul precision": versions.get("matmul precision", "default")}
    shown |= {"registered": versions.get("registered") or "none", "rules": versions.get("rules") or "interpreted"}
    return shown | {"XLA_FLAGS": versions.get("XLA_FLAGS") or "none"}


def changed_numerics(before: dict[str, str], now: dict[str, str]) -> str:
    """What of `versions` differs and may change bits; the number of devices and cores does not."""
    old, new = numerics(before), numerics(now)
    return "; ".join(f"{n} {old[n]} then, {new[n]} now" for n in new if old[n] != new[n])
