"""Accelerators by name: what their makers publish of them, and their compilers, which need no device."""

import contextlib
import dataclasses
import importlib.util
import inspect
import os
from collections.abc import Mapping
from typing import Any

import jax

from bpevo.runs import RunError


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Published peaks of one device."""

    name: str
    kind: str  # jax's platform: "tpu" or "gpu"
    device_kind: str  # as jax names the device, in lower case: how a real one is recognised
    bandwidth: float  # bytes a second, of its memory
    flops: Mapping[str, float]  # FLOP/s of dense matrix products by compute dtype, at jax's default precision
    source: str
    topology: str  # of one device, in the words of its compiler

    def bounds(self, bytes_: float, flops: float, dtype: str) -> tuple[float, float]:
        """Seconds that memory and arithmetic take at the least."""
        return bytes_ / self.bandwidth, flops / self.flops[dtype]


def _tpu(name: str, device_kind: str, topology: str, bandwidth: float, flops: float) -> Accelerator:
    """Products of float32 are one pass of bfloat16 by default."""
    peaks = {"float32": flops, "bfloat16": flops}
    return Accelerator(name, "tpu", device_kind, bandwidth, peaks, f"cloud.google.com/tpu/docs/{name}", topology)


def _hopper(name: str, device_kind: str, bandwidth: float) -> Accelerator:
    """Products of float32 are TF32 by default; the data sheet's figures are with sparsity, twice these."""
    source = f"NVIDIA {name.upper()} data sheet, SXM, without sparsity"
    return Accelerator(name, "gpu", device_kind, bandwidth, {"float32": 494.5e12, "bfloat16": 989e12}, source, "1x1x1")


ACCELERATORS = {
    a.name: a
    for a in (
        _hopper("h100", "nvidia h100 80gb hbm3", 3.35e12),
        _hopper("h200", "nvidia h200", 4.8e12),
        _tpu("v5e", "tpu v5 lite", "1x1", 819e9, 197e12),
        _tpu("v5p", "tpu v5", "2x2x1", 2765e9, 459e12),
        _tpu("v6e", "tpu v6 lite", "1x1", 1640e9, 918e12),
    )
}

_CORES = {"tpu": 1, "gpu": 132}  # of the described devices

# XLA's description of a GPU: what its compiler asks of a device.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{description}"
"""
_GPUS = {
    "h100": _HOPPER.format(bandwidth=3.35e12, memory=84929347584, description="NVIDIA H100 80GB HBM3"),
    "h200": _HOPPER.format(bandwidth=4.8e12, memory=150754820096, description="NVIDIA H200"),
}


def quiet() -> None:
    """Before jax looks for devices: only a CPU computes here, and the TPU's compiler asks nobody about a TPU."""
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def named(text: str) -> tuple[Accelerator, str]:
    """(accelerator, topology) of `v5e` or `v5e:2x2`. Raises RunError if there is no such target."""
    name, _, topology = text.partition(":")
    if name not in ACCELERATORS or (topology and ACCELERATORS[name].kind == "gpu"):
        known = ", ".join(ACCELERATORS)
        raise RunError(f"no target {text!r}; there are {known}, TPUs also with a topology, as v5e:2x2")
    return ACCELERATORS[name], topology or ACCELERATORS[name].topology


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator that jax calls so; None if its peaks are not known here."""
    return next((a for a in ACCELERATORS.values() if a.device_kind in device_kind.lower()), None)


def described(text: str) -> list[jax.Device]:
    """Devices to compile for, which are not there.

    Raises:
      RunError: there is no such target, or its compiler is not installed or refuses it; says what to install.
    """
    accelerator, topology = named(text)
    plugins, extra = {"tpu": (("libtpu",), "tpu"), "gpu": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "cuda12")}[
        accelerator.kind
    ]
    if not any(importlib.util.find_spec(plugin) for plugin in plugins):
        raise RunError(f"the compiler for {text} is not installed: pip install '.[{extra}]' (no device is needed)")
    from jax.experimental import topologies

    try:
        if accelerator.kind == "gpu":
            found = topologies.get_topology_desc(platform="cuda", target_config=_GPUS[text], topology=topology)
        else:
            found = topologies.get_topology_desc(topology_name=f"{accelerator.name}:{topology}", platform="tpu")
    except Exception as error:  # whatever the compiler's plugin raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"the installed compiler does not know {text}: {reason}") from error
    return list(found.devices)[: None if ":" in text else 1]


def as_if_on(device: jax.Device) -> contextlib.AbstractContextManager[Any]:
    """While programs are lowered for a described device: the project's kernels ask which one it is."""
    if device.platform == "cpu":
        return contextlib.nullcontext()
    told = {"device_kind": device.device_kind, "num_cores": _CORES[device.platform], "platform": device.platform}
    make: Any = jax.sharding.AbstractDevice  # jax before 0.12 asks for less
    device_in_words = make(**{k: v for k, v in told.items() if k in inspect.signature(make).parameters})
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device_in_words))
