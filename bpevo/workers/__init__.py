"""Where evaluations run: the slots of this process's devices."""

from bpevo.workers.checkpoints import Checkpoints
from bpevo.workers.job import Job, Outcome
from bpevo.workers.local import LocalWorkers

__all__ = ["Checkpoints", "Job", "LocalWorkers", "Outcome"]
