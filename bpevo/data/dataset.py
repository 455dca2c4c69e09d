"""A dataset in memory."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A dataset in memory.

    Attributes:
      name: as given to `load`.
      train_images: uint8 `[N, H, W, C]`, or float32 `[N, ...]`, which is trained on as it is.
      train_labels: int32 `[N]`, in `0..num_classes - 1`.
      test_images: likewise.
      test_labels: int32 `[N_test]`.
      num_classes: number of classes.
      flip: whether augmentation flips images left to right.
      pad: zeros that augmentation adds on every side before a random crop.
      source: one line that says where the data came from.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    flip: bool
    pad: int
    source: str
