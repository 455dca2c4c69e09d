"""The Ray cluster under a fleet: one that is running, or a small one of this process alone."""

import contextlib
import os
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray loads: it reports to its makers

import ray
from ray._private import ray_constants, services, worker
from ray._raylet import AuthenticationTokenLoader, Config
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bpevo.training import usable_cpus

CONNECT = 20.0  # seconds to wait for a cluster's address
STORE = 256 * 2**20  # bytes for data on this machine's cluster
LOOPBACK = "127.0.0.1"  # the one address for which Ray's servers do not listen on all interfaces
OUTER = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR  # "0": Ray does not take LOOPBACK for the machine's outer address


class Cluster:
    """A connection to a running cluster, or a cluster on this machine, for it alone, that ends with it."""

    def __init__(self, address: str | None):
        """Raises ConnectionError."""
        self._settings = contextlib.ExitStack()
        options = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        try:
            if address is None:
                options |= self._private()
            else:
                options |= self._running(address)
            with warnings.catch_warnings():
                # jax warns of forks; a child of Ray's becomes another program at once.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(**options)
            # Of a death Ray prints pages, whatever log_to_driver says; the pool says it in a line.
            self._settings.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
            worker.print_to_stdstream = lambda data, ignore_prefix: None
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, ray.exceptions.RayError) as error:
            self.close()
            what = "start a Ray cluster on this machine" if address is None else f"reach a Ray cluster at {address}"
            raise ConnectionError(f"cannot {what}: {_reason(error)}") from error

    def _private(self) -> dict[str, Any]:
        # Others on this machine can reach a loopback address: only this process and its workers know the token.
        own = {OUTER: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        own["RAY_worker_niceness"] = "0"  # beside this process's: Ray would have its workers give way to all else
        self._settings.enter_context(_settings(own))
        # "local": without it Ray would join whatever cluster it finds.
        return {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False} | {
            "object_store_memory": STORE,
            "_node_ip_address": LOOPBACK,
        }

    def _running(self, address: str) -> dict[str, Any]:
        """Raises ValueError or OSError where nothing answers: Ray would try for minutes."""
        if address == "auto":
            address = services.get_ray_address_from_environment("auto", None)
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdecimal() and "/" not in host):
            raise ValueError("it must be HOST:PORT of its head node, where ray start says 6379, or auto")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
        if not host.startswith("127."):
            return {"address": address}
        self._settings.enter_context(_settings({OUTER: "0"}))
        return {"address": address, "_node_ip_address": host}

    @property
    def address(self) -> str:
        """HOST:PORT, by which other processes reach it."""
        return ray.get_runtime_context().gcs_address

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what is left of a broken cluster is no reason to lose an exit code
            ray.shutdown()
        self._settings.close()


@contextlib.contextmanager
def _settings(own: Mapping[str, str]) -> Iterator[None]:
    """Ray's environment variables for this process and what it starts, whether or not Ray has read them already."""
    names = {*own, "RAY_AUTH_MODE"}  # Ray sets it too
    before = {name: os.environ.get(name) for name in names}

    def set_to(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(OUTER, "1") != "0"
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    set_to(own)
    try:
        yield
    finally:
        set_to(before)


def _reason(error: BaseException) -> str:
    if "AuthenticationError" in f"{error!r} {error.__cause__!r}":
        return "its token is missing here, or another one: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def living() -> dict[str, dict[str, float]]:
    """The living nodes, and what each has to give."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def host(node: str) -> str:
    """A node's name in the network, and its address."""
    return next(f"{n['NodeManagerHostname']} at {n['NodeManagerAddress']}" for n in ray.nodes() if n["NodeID"] == node)


def asked(
    begin: Callable[[], Any], needs: Mapping[str, float], environment: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """What `begin` gives on each node, in a process of its own there; a text where it gives nothing: why.

    Args:
      begin: a picklable function.
      needs: of a worker. Its CPUs are not waited for, so that a busy cluster answers.
      environment: variables of the processes.
      seconds: after which a node counts as silent.
    """
    own = {name: amount for name, amount in needs.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": needs.get("GPU", 0),
        "resources": own or None,
        "max_retries": 0,
    }
    options["runtime_env"] = {"env_vars": dict(environment)}
    function = ray.remote(_begin_there)
    calls = {}
    for node, resources in living().items():
        if all(resources.get(name, 0) >= amount for name, amount in needs.items()):
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            calls[node] = function.options(**options, scheduling_strategy=there).remote(begin)
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
    return {node: _given(call, seconds) for node, call in calls.items()}


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


def _begin_there(begin: Callable[[], Any]) -> Any:
    return begin()


def _given(call: ray.ObjectRef, seconds: float) -> Any:
    try:
        return ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no answer in {seconds:.0f} s: its accelerators are taken by others, or it hangs"
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[:300]
