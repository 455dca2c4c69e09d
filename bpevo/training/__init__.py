"""Training of many candidates at once: settings, one candidate's epoch, and the slots over all devices.

A `Trainer` knows equations, seeds and learning rates; it knows no evolution.
"""

from bpevo.training.cpus import usable_cpus
from bpevo.training.optimizers import OPTIMIZERS
from bpevo.training.plan import TrainingPlan
from bpevo.training.settings import DTYPES, NUMERICS, SCHEDULES, TrainingSettings
from bpevo.training.slots import most_slots
from bpevo.training.task import REASONS, Examples, Task, to_examples
from bpevo.training.trainer import DeviceLost, EpochResult, OutOfMemory, Trainer, Training
from bpevo.training.transforms import GRAFTED, TRANSFORMS

__all__ = [
    "DTYPES",
    "GRAFTED",
    "NUMERICS",
    "OPTIMIZERS",
    "REASONS",
    "SCHEDULES",
    "TRANSFORMS",
    "Task",
    "DeviceLost",
    "EpochResult",
    "Examples",
    "OutOfMemory",
    "Trainer",
    "Training",
    "TrainingPlan",
    "TrainingSettings",
    "most_slots",
    "to_examples",
    "usable_cpus",
]
