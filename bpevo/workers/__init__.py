"""Where trainings run: the protocol of workers, and the slots of this process's devices."""

from bpevo.workers.checkpoints import Checkpoints
from bpevo.workers.job import Job, Outcome, Stage
from bpevo.workers.local import LocalWorkers
from bpevo.workers.workers import Workers

__all__ = ["Checkpoints", "Job", "LocalWorkers", "Outcome", "Stage", "Workers"]
