"""Where trainings run: the protocol of workers, the slots of this process's devices, and a pool of machines."""

from bpevo.workers.checkpoints import Checkpoints
from bpevo.workers.job import ON, Job, Outcome, Stage, on
from bpevo.workers.local import LocalWorkers
from bpevo.workers.networks import WorkersByNetwork
from bpevo.workers.pool import Patience, Pool, PoolError, PoolLost
from bpevo.workers.recipe import Recipe
from bpevo.workers.workers import Workers

__all__ = [
    "ON",
    "Checkpoints",
    "Job",
    "LocalWorkers",
    "Outcome",
    "Patience",
    "Pool",
    "PoolError",
    "PoolLost",
    "Recipe",
    "Stage",
    "Workers",
    "WorkersByNetwork",
    "on",
]
