"""Small Ray clusters on this machine's loopback, and what can happen to their nodes and workers."""

import contextlib
import dataclasses
import ipaddress
import os
import pathlib
import secrets
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator

from ray.cluster_utils import Cluster

from bpevo.command import pools
from bpevo.workers import Recipe, ray_cluster

PROC = pathlib.Path("/proc")
STORE = 80 * 2**20  # bytes, of a node
PAUSE = 0.03  # seconds after a search's nth row, times n, while something is still to happen


class SmallCluster:
    """Nodes of one CPU each: a head, and those that are added."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self.head = self.add()
        self.address = self._cluster.address

    def add(self):
        return self._cluster.add_node(
            num_cpus=1, node_ip_address=ray_cluster.LOOPBACK, include_dashboard=False, object_store_memory=STORE
        )

    def kill(self, node) -> None:
        """As when its machine goes."""
        process = node.all_processes["raylet"][0].process
        process.kill()
        process.wait()

    def close(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    """On loopback alone; its processes know the tests' modules."""
    folder = pathlib.Path(__file__).parent
    own = {"PYTHONPATH": f"{folder.parent}{os.pathsep}{folder}"}
    own |= {ray_cluster.OUTER: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own["RAY_worker_niceness"] = "0"
    with ray_cluster._settings(own):
        made = SmallCluster()
        try:
            yield made
        finally:
            made.close()


def children(pid: int) -> dict[int, str]:
    """Processes below one, and their command lines."""
    parents, lines = {}, {}
    for folder in PROC.iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            number = int(folder.name)
            parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[number] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    found, left = {}, [pid]
    while left:
        above = left.pop()
        below = [number for number, parent in parents.items() if parent == above]
        found |= {number: lines[number] for number in below}
        left += below
    return found


def workers(node, call: str = "") -> list[int]:
    """Pids of a node's workers, of those in such a call alone if it is given."""
    pid = node.all_processes["raylet"][0].process.pid
    return [number for number, line in children(pid).items() if line.startswith(f"ray::_Actor{call and f'.{call}'}")]


def listening(pids: Iterable[int]) -> set[str]:
    """Addresses at which any of these processes listens."""
    of_socket = {}
    for table, form in (("tcp", "<I"), ("tcp6", "<4I")):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            words = [int(fields[1][i : i + 8], 16) for i in range(0, len(fields[1].partition(":")[0]), 8)]
            if fields[3] == "0A":
                of_socket[f"socket:[{fields[9]}]"] = ipaddress.ip_address(struct.pack(form, *words))
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in (PROC / f"{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (address := of_socket.get(os.readlink(descriptor))) is not None:
                        found.add(str(getattr(address, "ipv4_mapped", None) or address))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition: Callable[[], object], seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


class Events:
    """What happens to a cluster in the course of a search in this process: steps, each once its condition holds.

    Looked at after each row; meanwhile rows are slow to come, so that the search is not over first.
    """

    def __init__(self, monkeypatch):
        self.steps: list[tuple[Callable[[], object], Callable[[], object]]] = []
        self.rows = 0
        self.pool = None  # once the search has begun
        make = pools.Pool

        def making(*arguments, **given):
            self.pool = make(*arguments, **given)
            poll = self.pool.poll

            def polling(meanwhile):
                outcomes = poll(meanwhile)
                for _ in outcomes:
                    self._row()
                return outcomes

            self.pool.poll = polling
            return self.pool

        monkeypatch.setattr(pools, "Pool", making)

    def _row(self) -> None:
        self.rows += 1
        if self.steps:
            time.sleep(PAUSE * self.rows)
            condition, action = self.steps[0]
            if condition():
                self.steps.pop(0)
                action()

    def later(self, rows: int) -> Callable[[], bool]:
        """A condition: so many rows after it was first asked."""
        first: list[int] = []

        def condition() -> bool:
            first.append(self.rows)
            return self.rows >= first[0] + rows

        return condition

    def gone_from(self, node) -> Callable[[], bool]:
        """A condition: the pool knows of no worker there. Ray may notice only after half a minute that a node has died."""
        return lambda: not any(m.place and m.place.node == node.node_id for m in self.pool._members.values())

    def trained_on(self, node) -> Callable[[], bool]:
        """A condition: a worker on that node has trained an epoch."""
        return lambda: any(m.proven and m.place.node == node.node_id for m in self.pool._members.values())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FatalRecipe(Recipe):
    """Its trainer brings its process down when it starts a certain equation."""

    equation: str

    def trainers(self):
        found = super().trainers()
        for made in found.values():
            start = made.start

            def starting(slot, training, *state, start=start):
                if str(training.equation) == self.equation:
                    os.kill(os.getpid(), signal.SIGSEGV)
                start(slot, training, *state)

            made.start = starting
        return found
