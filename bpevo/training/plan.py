"""What the trainings of one run share, read once: settings, data, seed."""

import dataclasses
import functools
import zlib
from typing import Any

import numpy as np

from bpevo import data, models
from bpevo.training.settings import NUMERICS, TrainingSettings
from bpevo.training.task import Examples, Task, to_examples
from bpevo.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything but the equations, with the data in memory.

    >>> digits = data.load("digits")
    >>> split = data.train_validation_split(digits, train_examples=100)
    >>> settings = TrainingSettings(model="mlp-8", batch_size=10)
    >>> plan = TrainingPlan(settings=settings, learning_rates=(0.1,), dataset=digits, split=split, seed=0)
    >>> plan.task().steps_per_epoch
    10
    """

    settings: TrainingSettings
    learning_rates: tuple[float, ...]  # each equation is trained with each of these
    dataset: data.Dataset
    split: data.Split  # of the dataset: what is trained on and what is evaluated on
    seed: int  # root of everything random
    held_out: int = 0  # of the examples that are evaluated on: kept from all trainings but those with `held_out`

    def task(self, measure_alignment: bool = False, transforms: tuple[str, ...] = ()) -> Task:
        return Task(
            settings=self.settings,
            classes=self.dataset.num_classes,
            examples=len(self.split.train_labels),
            flip=self.dataset.flip,
            pad=self.dataset.pad,
            measure_alignment=measure_alignment,
            transforms=transforms,
        )

    def examples(self) -> Examples:
        return to_examples(self.split, self.settings.batch_size, self.held_out)

    def trainer(self, max_parts: int, slots: int | None) -> Trainer:
        """Raises OutOfMemory."""
        return Trainer(self.task(), self.examples(), capacity=slots, max_parts=max_parts, seed=self.seed)

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share to be comparable."""
        sample = self.split.train_images.shape[1:]
        network = models.fingerprint(self.settings.model, self.dataset.num_classes, sample)
        return (
            dataclasses.asdict(self.settings)
            | network
            | {
                "dataset": self.dataset.name,
                "dataset_crc32": self._crc32,
                "train_examples": len(self.split.train_labels),
                "learning_rates": list(self.learning_rates),
                "seed": self.seed,
                "numerics": NUMERICS,
                **self._beside_arrays,
                **(
                    {"held_out": self.held_out, "validation_examples": len(self.split.eval_labels)}
                    if self.held_out
                    else {}
                ),
            }
        )

    @property
    def _beside_arrays(self) -> dict[str, Any]:
        """What a dataset says beside its arrays, where it is not what these alone would be."""
        own = self.dataset
        largest = max(int(labels.max()) for labels in (own.train_labels, own.test_labels) if len(labels))
        return ({"augmentation": [own.flip, own.pad]} if own.flip or own.pad else {}) | (
            {"classes": own.num_classes} if own.num_classes != largest + 1 else {}
        )

    @functools.cached_property
    def _crc32(self) -> int:
        """Checksum of images and labels, computed once: they may be hundreds of megabytes."""
        split = self.split
        return checksum(split.train_images, split.eval_images, split.train_labels, split.eval_labels)


def checksum(*arrays: np.ndarray) -> int:
    """The CRC-32 of the arrays' bytes, one after the other."""
    return functools.reduce(lambda crc, x: zlib.crc32(np.ascontiguousarray(x).data, crc), arrays, 0)
