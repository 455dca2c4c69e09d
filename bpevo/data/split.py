"""Fixed splits: what a search may see, and what only the final evaluation may."""

import dataclasses

import numpy as np

from bpevo.data.dataset import Dataset

PERMUTATION_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Examples to train on and examples to evaluate on; images uint8 `[N, H, W, C]` or float32 `[N, ...]`, labels int32 `[N]`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    eval_images: np.ndarray
    eval_labels: np.ndarray


def train_validation_split(dataset: Dataset, train_examples: int | None = None) -> Split:
    """Splits the training set in two; the test set is not touched.

    The training set of n examples is permuted by a generator of fixed seed; its last n // 10 (a sixth, rounded up,
    below 10,000) are the validation set. CIFAR-10: 45,000 and 5,000; digits: 1,197 and 240. No flag changes it.

    Args:
      dataset: where the training set comes from.
      train_examples: keep only the first so many of the training part; all where None.

    Raises:
      ValueError: `train_examples` is not between 1 and the size of the training part.
    """
    count = len(dataset.train_labels)
    validation = count // 10 if count >= 10_000 else -(-count // 6)
    available = count - validation
    kept = available if train_examples is None else train_examples
    if not 1 <= kept <= available:
        raise ValueError(f"train_examples={train_examples}: {dataset.name} has 1 to {available:,} training examples.")
    order = np.random.default_rng(PERMUTATION_SEED).permutation(count)
    train, held_out = order[:kept], order[available:]
    return Split(
        train_images=dataset.train_images[train],
        train_labels=dataset.train_labels[train],
        eval_images=dataset.train_images[held_out],
        eval_labels=dataset.train_labels[held_out],
    )


def full_training_split(dataset: Dataset, train_examples: int | None = None) -> Split:
    """The whole training set, evaluated on the test set: for the final evaluation only.

    With `train_examples`, the same examples as in `train_validation_split`: for runs that are smaller than the data.
    """
    train = dataset if train_examples is None else train_validation_split(dataset, train_examples)
    return Split(
        train_images=train.train_images,
        train_labels=train.train_labels,
        eval_images=dataset.test_images,
        eval_labels=dataset.test_labels,
    )
