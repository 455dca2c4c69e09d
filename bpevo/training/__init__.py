"""Training of many candidates at once: settings, one candidate's epoch, and the slots over all devices.

A `Trainer` knows equations, seeds and learning rates; it knows no evolution.
"""

from bpevo.training.candidate import REASONS, Candidate, Examples, to_examples
from bpevo.training.settings import DTYPES, OPTIMIZERS, SCHEDULES, TrainingSettings
from bpevo.training.trainer import EpochResult, OutOfMemory, Trainer, Training

__all__ = [
    "DTYPES",
    "OPTIMIZERS",
    "REASONS",
    "SCHEDULES",
    "Candidate",
    "EpochResult",
    "Examples",
    "OutOfMemory",
    "Trainer",
    "Training",
    "TrainingSettings",
    "to_examples",
]
