"""The Ray cluster under a fleet: one that is running, or a small one of this process alone."""

import contextlib
import os
import sys
from collections.abc import Mapping

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray loads: it reports to its makers

import ray

from bpevo.training import usable_cpus

# Ray takes 127.0.0.1 for the machine's outer address; any other loopback address it leaves alone. Only Linux has these.
LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None
STORE = 256 * 2**20  # bytes for data on this machine's cluster


class Cluster:
    """A connection to a running cluster, or a cluster on this machine that ends with it."""

    def __init__(self, address: str | None):
        """Raises ConnectionError."""
        options = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        if address is None:
            # "local": without it Ray would join whatever cluster it finds.
            options |= {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
            options |= {"object_store_memory": STORE, "_node_ip_address": LOOPBACK}
        else:
            options["address"] = address
            if address.startswith("127."):
                options["_node_ip_address"] = address.partition(":")[0]
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, ray.exceptions.RayError) as error:
            self.close()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            what = "start a Ray cluster on this machine" if address is None else f"reach a Ray cluster at {address}"
            raise ConnectionError(f"cannot {what}: {reason}") from error

    @property
    def address(self) -> str:
        """HOST:PORT, by which other processes reach it."""
        return ray.get_runtime_context().gcs_address

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what is left of a broken cluster is no reason to lose an exit code
            ray.shutdown()


def needs(workers: int | None, each: int | None = None) -> dict[str, float]:
    """Ray's resources of a worker: a GPU; or all TPU chips of a host; or, where there are none, `each` CPUs, else so many that
    `workers` find room, or all of a host. Raises ConnectionError where the cluster has none of these."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU") for node in nodes):
        return {"CPU": 1, "GPU": 1}
    if chips := max((node.get("TPU", 0) for node in nodes), default=0):
        return {"CPU": 1, "TPU": chips}
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    if not cpus:
        raise ConnectionError("the Ray cluster has neither GPUs, TPUs nor CPUs to give")
    if each:
        if each > max(cpus):
            raise ConnectionError(
                f"no node of the Ray cluster has {each} CPUs for a worker, the largest has {max(cpus)}"
            )
        return {"CPU": each}
    each = min(cpus)
    while workers and each > 1 and sum(c // each for c in cpus) < workers:
        each -= 1
    return {"CPU": each}


def environment(needs: Mapping[str, float]) -> dict[str, str]:
    """Variables of a worker's process. One without an accelerator must not take what it finds."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    if needs.keys() == {"CPU"}:
        return quiet | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(int(needs["CPU"]))}
    return quiet
