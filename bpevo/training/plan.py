"""What the candidates of a run train on, as one typed plan."""

import dataclasses
import functools
import zlib
from typing import Any

from bpevo import data
from bpevo.training.settings import TrainingSettings
from bpevo.training.task import Examples, Task, to_examples
from bpevo.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPlan:
    """Settings, rates, data and seed of a run's trainings; data loaded."""

    settings: TrainingSettings
    learning_rates: tuple[float, ...]
    dataset: data.Dataset
    split: data.Split
    seed: int

    def task(self, measure_alignment: bool = False) -> Task:
        """What every candidate trains on."""
        return Task(
            self.settings,
            self.dataset.num_classes,
            len(self.split.train_labels),
            self.dataset.flip,
            self.dataset.pad,
            measure_alignment,
        )

    def examples(self) -> Examples:
        return to_examples(self.split, self.settings.batch_size)

    def trainer(self, max_parts: int, slots: int | None) -> Trainer:
        """Slots that train interpreted equations of up to `max_parts` parts. Raises OutOfMemory."""
        return Trainer(self.task(), self.examples(), slots, max_parts, self.seed)

    @functools.cached_property
    def _crc32(self) -> int:
        return zlib.crc32(self.split.train_images.tobytes() + self.split.eval_images.tobytes())

    def fingerprint(self) -> dict[str, Any]:
        """What two runs must share to be comparable."""
        return dataclasses.asdict(self.settings) | {
            "dataset": self.dataset.name,
            "dataset_crc32": self._crc32,
            "train_examples": len(self.split.train_labels),
            "learning_rates": list(self.learning_rates),
            "seed": self.seed,
        }
