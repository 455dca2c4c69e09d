"""The chaos soak: searches over a real Ray whose workers, nodes and heads are killed at random, against one left alone.

    python -m pytest -m soak -s -n 0 tests/test_soak_cluster.py

goes on until there were SOAK_WORKERS kills of workers, SOAK_NODES of nodes and SOAK_HEADS of heads, some twelve minutes on two
cores, and prints a table. Each kind of kill alone is in test_cluster.py.
"""

# ruff: noqa: E402
import collections
import contextlib
import itertools
import os
import random
import signal
import time

import pytest
from test_runs import rows
from test_soak import compare

pytest.importorskip("ray", reason="ray is not installed")

import clusters
from clusters import small_cluster
from test_cluster import SEARCH, single, started, stored  # noqa: F401 (a fixture)

KILLS = {
    "workers": int(os.environ.get("SOAK_WORKERS", 100)),
    "nodes": int(os.environ.get("SOAK_NODES", 20)),
    "heads": int(os.environ.get("SOAK_HEADS", 10)),
}
NODES = 3  # beside the head's
PATIENCE = 1800.0  # seconds for a search that is left alone

pytestmark = pytest.mark.soak


class Chaos:
    """A cluster and a search on it, at which anything may be killed. A node that was killed is replaced."""

    def __init__(self, cluster, seed: int, figures: collections.Counter):
        self._cluster, self._figures, self._random = cluster, figures, random.Random(seed)
        self._nodes = [cluster.add() for _ in range(NODES)]

    def search(self, folder, kills: collections.Counter) -> None:
        """A search to its end, through so many kills or fewer: each once something was stored since the one before."""
        head, end, before = self._start(folder), time.monotonic() + PATIENCE, 0
        while head.poll() is None:
            assert time.monotonic() < end, (folder / "output").read_text()
            time.sleep(self._random.uniform(0.05, 0.3))
            left, now = list(kills.elements()), stored(folder)
            if not left or now == before:
                continue
            what = self._random.choice(left)
            if what == "workers":
                done = self._kill_worker()
            elif what == "nodes":
                done = self._kill_node()
            else:
                head.kill()
                head.wait()
                self._figures["heads killed"] += 1
                head, done = self._start(folder), True
            kills[what] -= done
            before = now if done else before
        assert head.returncode == 0, (folder / "output").read_text()

    def _start(self, folder):
        return started(folder, ray_address=self._cluster.address, workers=NODES + 1)

    def _kill_worker(self) -> bool:
        """One that is in an epoch: three that die while they start would be the end of their node."""
        training = [w for node in (self._cluster.head, *self._nodes) for w in clusters.workers(node, "epoch")]
        if not training:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._random.choice(training), signal.SIGKILL)
            self._figures["workers killed"] += 1
            return True
        return False

    def _kill_node(self) -> bool:
        node = self._nodes.pop(self._random.randrange(NODES))
        self._figures["workers killed with their node"] += len(clusters.workers(node))
        self._cluster.kill(node)
        self._figures["nodes killed"] += 1
        self._nodes.append(self._cluster.add())
        return True


def test_kills_of_workers_nodes_and_heads_of_a_cluster(single, tmp_path):  # noqa: F811
    begin, figures, left = time.monotonic(), collections.Counter(), collections.Counter(KILLS)
    with small_cluster() as cluster:
        chaos = Chaos(cluster, 0, figures)
        for number in itertools.count():
            if not left.total():
                break
            folder = tmp_path / str(number)
            folder.mkdir()
            chaos.search(folder, left)
            found = rows(folder)
            figures["searches"] += 1
            figures["results crashed"] += sum(row[5] == "crashed" for row in found["evaluations"])
            compare(figures, single(0), found)
            print(f"\nafter {time.monotonic() - begin:.0f} s:", dict(figures), flush=True)
    assert not figures["results crashed"]
    for what, count in figures.items():
        print(f"| {what} | {count} |")
    print(f"| seconds | {time.monotonic() - begin:.0f} |")
