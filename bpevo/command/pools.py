"""Where a command trains, if not on its own devices: a pool of machines, opened and closed around the run."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bpevo.command import process, selfcheck
from bpevo.command.jax_setup import configure_jax
from bpevo.runs import RunError, provenance
from bpevo.workers import Pool, Recipe

PASSED_ON = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")  # of the environment: they decide numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolPlan:
    """What a command was told of its pool."""

    address: str | None  # of a Ray cluster; None: a local one, for this run alone
    workers: int | None  # at most; None: as many as there is room for
    cpus: int | None = None  # of a worker without an accelerator; None: so many that `workers` find room


def begin(check: bool) -> dict[str, str]:
    """Sets a worker's process up; returns what decides its numbers. Raises RunError."""
    configure_jax()
    if check:
        selfcheck.check()
    return provenance.numerics(provenance.versions())


@contextlib.contextmanager
def opened(
    plan: PoolPlan, recipe: Recipe, check: bool, interruption: process.Interruption, say: Callable[[str], None]
) -> Iterator[Pool]:
    """A pool with a first worker that is ready. Raises RunError, PoolError or PoolLost."""
    with connected(plan.address, interruption):
        from bpevo.workers import ray_fleet

        needs = _needs(plan.workers, plan.cpus)
        fleet = ray_fleet.RayFleet(functools.partial(begin, check), needs, environment(needs))
        with contextlib.closing(Pool(fleet, recipe, plan.workers, versions=expected(), say=say)) as pool:
            pool.meet()
            yield pool


@contextlib.contextmanager
def shared(plan: PoolPlan, runs: int, interruption: process.Interruption) -> Iterator[tuple[int, PoolPlan]]:
    """A cluster for several runs with the workers of `plan` each: for how many at once it has room, at least one, and the plan
    of each. Raises RunError."""
    assert plan.workers
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(connected(plan.address, interruption))
        from bpevo.workers import ray_fleet

        needs = _needs(plan.workers * runs, plan.cpus)
        room = sum(ray_fleet.rooms(needs).values())
        cpus = int(needs["CPU"]) if needs.keys() == {"CPU"} else None
        own = dataclasses.replace(plan, address=plan.address or cluster.address, cpus=cpus)
        if plan.address:
            stack.close()  # it was only to be looked at
        yield max(1, room // plan.workers), own


@contextlib.contextmanager
def connected(address: str | None, interruption: process.Interruption) -> Iterator[Any]:
    """A ray_cluster.Cluster, see there. Raises RunError."""
    try:
        from bpevo.workers import ray_cluster
    except ModuleNotFoundError as error:
        raise RunError(
            f"--pool=ray needs Ray, and {error.name} is not installed: pip install '.[cluster]' in a clone of bpevo, on every "
            "machine of the cluster"
        ) from error
    try:
        cluster = ray_cluster.Cluster(address)
    except ConnectionError as error:
        raise RunError(str(error)) from error
    with contextlib.closing(cluster):
        interruption.restore()  # Ray takes SIGTERM for itself
        yield cluster


def _needs(workers: int | None, cpus: int | None) -> dict[str, float]:
    from bpevo.workers import ray_cluster

    try:
        return ray_cluster.needs(workers, cpus)
    except ConnectionError as error:
        raise RunError(str(error)) from error


def environment(needs: Mapping[str, float]) -> dict[str, str]:
    """Variables of the process of a worker that needs so much."""
    from bpevo.workers import ray_cluster

    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return passed_on | ray_cluster.environment(needs)


def expected() -> dict[str, str]:
    """What every worker must report as this process does, which leaves the accelerators to them."""
    own = provenance.numerics(provenance.versions())
    return {name: value for name, value in own.items() if name not in ("device", "rules")}


def versions(pool: Pool | None) -> dict[str, str]:
    """Versions and machine of a run, as stored with it."""
    own = provenance.versions()
    return (
        own if pool is None else own | {"device": f"pool x {pool.versions['device']}", "rules": pool.versions["rules"]}
    )
