"""What a Ray cluster is like, node by node: for the doctor."""

import functools
import os
from collections.abc import Iterator, Mapping

from bpevo.command import pools, process
from bpevo.runs import RunError
from bpevo.workers.fleet import differences

SECONDS = 300.0  # that a node may take to start a worker and check itself
Finding = tuple[str, str, str]  # what, its state, what is wrong with it


def cluster(address: str, interruption: process.Interruption) -> Iterator[Finding]:
    """Who can be reached, what room there is, and what a worker of each node says of itself."""
    try:
        with pools.connected(address, interruption):
            from bpevo.workers import ray_cluster, ray_fleet

            nodes = ray_cluster.living()
            try:
                needs = ray_cluster.needs(None)
            except ConnectionError as error:
                yield "cluster", address, str(error)
                return
            room = ray_fleet.rooms(needs)
            of_worker = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
            secret = os.environ.get("RAY_AUTH_MODE") == "token"
            guarded = "by a token" if secret else "not: whoever reaches its ports runs code there, see README.md"
            yield "cluster", f"{address}: {len(nodes)} nodes, guarded {guarded}", ""
            full = "" if room else "no node has room for a worker"
            yield "room", f"{sum(room.values())} workers of {of_worker}, were nothing else on it", full
            begin = functools.partial(pools.begin, check=True)
            said = ray_cluster.asked(begin, needs, pools.environment(needs), SECONDS)
            for node, resources in nodes.items():
                has = ", ".join(f"{resources[name]:g} {name}" for name in ("CPU", "GPU", "TPU") if resources.get(name))
                yield (
                    f"node {node[:8]}",
                    f"{ray_cluster.host(node)}, {has or 'nothing to give'}, room for {room.get(node, 0)}",
                    "",
                )
            yield from compared(pools.expected(), {node[:8]: answer for node, answer in said.items()})
    except RunError as error:
        yield "cluster", address, str(error)


def compared(expected: Mapping[str, str], said: Mapping[str, Mapping[str, str] | str]) -> Iterator[Finding]:
    """What the nodes' workers said of themselves: how they differ from this machine, and from the first of them.

    Args:
      expected: what every worker must report.
      said: by node: the report, or why there is none.
    """
    expected = dict(expected)
    for node, answer in said.items():
        if isinstance(answer, str):
            yield f"worker {node}", "of no use", f"{answer}{_REMEDY if _is_missing(answer) else ''}"
            continue
        other = differences(expected, answer)
        expected |= {name: value for name, value in answer.items() if name not in expected}  # the first one settles it
        state = ", ".join(f"{name} {answer[name]}" for name in ("bpevo", "jax", "device", "rules") if name in answer)
        yield f"worker {node}", f"computes right numbers: {state}", other + _UNLIKE if other else ""


_UNLIKE = (
    ": a run would leave it out. Install the same releases on every machine, one kind of device, the same XLA_FLAGS"
)
_REMEDY = ": install bpevo there, with what it needs, for the Python that Ray runs with"


def _is_missing(answer: str) -> bool:
    return "ModuleNotFoundError" in answer or "No module named" in answer
