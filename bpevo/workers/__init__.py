"""Where evaluations run: the slots of this process's devices."""

from bpevo.workers.local import Job, LocalWorkers, Outcome

__all__ = ["Job", "LocalWorkers", "Outcome"]
