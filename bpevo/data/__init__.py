"""Datasets as uint8 arrays, their fixed splits, and augmentation inside the compiled step.
Reads and prepares TFDS image classification sets without TensorFlow."""

from bpevo.data.augment import augment, normalise, per_pixel_mean
from bpevo.data.datasets import LOCAL, Dataset, load
from bpevo.data.errors import DataError
from bpevo.data.prepare import PREPARABLE, prepare
from bpevo.data.split import Split, full_training_split, train_validation_split

__all__ = (
    "LOCAL",
    "PREPARABLE",
    "DataError",
    "Dataset",
    "Split",
    "augment",
    "full_training_split",
    "load",
    "normalise",
    "per_pixel_mean",
    "prepare",
    "train_validation_split",
)
