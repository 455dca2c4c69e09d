"""Datasets as arrays of uint8 (or floats of one's own), their fixed splits, and augmentation inside the compiled step.
Reads and prepares TFDS image classification sets without TensorFlow."""

from bpevo.data.augment import augment, normalise, per_pixel_mean
from bpevo.data.dataset import Dataset
from bpevo.data.datasets import LOCAL, load
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
