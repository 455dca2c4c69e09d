"""Preparing CIFAR-10, CIFAR-100 and SVHN for TFDS, without TensorFlow.

The stock builders download, extract and encode with TensorFlow. Here the original files are downloaded and parsed by
this module, and TFDS writes them in its standard layout, `<data_dir>/<name>/<version>/`, which every unmodified TFDS
reads. SVHN's `extra` split is left out.
"""

import dataclasses
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from bpevo.data import tfds_reader
from bpevo.data.download import fetch
from bpevo.data.errors import DataError, brief
from bpevo.data.progress import Progress, reporter

CIFAR_SHAPE = (32, 32, 3)
REPORT_EVERY = 500


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A split in memory: images uint8 `[N, H, W, C]`, labels `[N]` by feature, and the format of an example's id."""

    images: np.ndarray
    labels: Mapping[str, np.ndarray]
    id_format: str


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What the original files hold: the splits, and class names by label feature."""

    parts: Mapping[str, _Part]
    class_names: Mapping[str, list[str]]


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a dataset comes from and how its files are read (in the order of `files`)."""

    base_url: str
    files: tuple[str, ...]
    read: Callable[..., _Contents]


def prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    base_url: str | None = None,
    checksums: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads a dataset and writes it as array_record files in TFDS's standard layout.

    Original files are kept in `<data_dir>/downloads/`; one that is there already is not downloaded again.

    Args:
      name: one of `PREPARABLE`.
      data_dir: TFDS's directory, which must exist; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` where None.
      base_url: where the original files are, in place of their home.
      checksums: file name to SHA-256 in hexadecimal, in place of those that TFDS ships.
      progress: called as `progress(task, done, total)`; a bar on a terminal and log lines elsewhere where None.

    Returns:
      The directory of the prepared dataset.

    Raises:
      DataError: the dataset cannot be prepared without TensorFlow, a download failed or is wrong, an original file is
        damaged, or `data_dir` cannot be written.
    """
    root = tfds_reader.data_root(data_dir)
    builder = tfds_reader.open_builder(name, root)
    if tfds_reader.is_prepared(builder):
        return Path(builder.data_dir)
    if name not in ORIGINS:
        raise DataError(
            f"{builder.data_dir}: {name} is not prepared there, and bpevo prepares only {', '.join(PREPARABLE)}. "
            'Prepare it where TensorFlow is installed: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}', data_dir='{root}', file_format='array_record').download_and_prepare()\""
        )
    origin = ORIGINS[name]
    if checksums is None:
        checksums = {info.filename: info.checksum for info in builder.url_infos.values()}
    url = (base_url or origin.base_url).rstrip("/")
    with reporter(progress) as report:
        paths = [fetch(f"{url}/{file}", root / "downloads" / file, checksums[file], report) for file in origin.files]
        contents = origin.read(*paths)
        _write(builder, contents, report)
    return Path(builder.data_dir)


def _write(builder: Any, contents: _Contents, report: Progress) -> None:
    import tensorflow_datasets as tfds

    class Writer(type(builder), skip_registration=True):  # type: ignore[misc, call-arg]
        """The stock builder, fed from memory and silent."""

        __module__ = type(builder).__module__  # dataset_info.json records it.
        name = builder.name

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            for feature, names in contents.class_names.items():
                self.info.features[feature].names = names
            return {
                split: _examples(part, f"Writing {self.name} {split}", report) for split, part in contents.parts.items()
            }

        def _log_download_bytes(self) -> None:
            logging.info("Writing %s to %s.", self.name, builder.data_dir)

        def _log_download_done(self) -> None:
            logging.info("Prepared %s in %s.", self.name, builder.data_dir)

    tfds.display_progress_bar(False)
    try:
        with tfds_reader.without_chatter():
            Writer(data_dir=builder.data_dir_root, file_format="array_record").download_and_prepare()
    except Exception as error:
        if not tfds_reader.is_prepared(builder):  # It may be: another process can have been faster.
            raise DataError(
                f"{builder.data_dir}: cannot be written: {brief(error)}. Make room or give another --data_dir."
            ) from error
    finally:
        tfds.display_progress_bar(True)


def _examples(part: _Part, task: str, report: Progress) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the stock builder's keys and examples; as PIL images, which TFDS encodes without TensorFlow."""
    from PIL import Image

    count = len(part.images)
    for i, image in enumerate(part.images):
        labels = {feature: int(values[i]) for feature, values in part.labels.items()}
        yield i, {"id": part.id_format.format(i), "image": Image.fromarray(image), **labels}
        if (i + 1) % REPORT_EVERY == 0 or i + 1 == count:
            report(task, i + 1, count)


def _read_cifar10(archive: Path) -> _Contents:
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _read_cifar(archive, "cifar-10-batches-bin", train, ["test_batch.bin"], {"label": "batches.meta.txt"})


def _read_cifar100(archive: Path) -> _Contents:
    names = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
    return _read_cifar(archive, "cifar-100-binary", ["train.bin"], ["test.bin"], names)


def _read_cifar(archive: Path, folder: str, train: list[str], test: list[str], names: dict[str, str]) -> _Contents:
    """A record is a byte for each label, in the order of `names`, then the image as 3 planes of 32 rows of 32 bytes."""
    wanted = {f"{folder}/{file}" for file in [*train, *test, *names.values()]}
    members = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile() and member.name in wanted:
                    stream = tar.extractfile(member)
                    assert stream is not None  # it is a regular file
                    members[member.name.removeprefix(f"{folder}/")] = stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise _damaged(archive, brief(error)) from error
    if missing := sorted(wanted - {f"{folder}/{file}" for file in members}):
        raise _damaged(archive, f"it lacks {', '.join(missing)}")
    class_names = {feature: members[file].decode().split() for feature, file in names.items()}

    def part(files: list[str], id_format: str) -> _Part:
        size = len(names) + int(np.prod(CIFAR_SHAPE))
        for file in files:
            if len(members[file]) % size:
                raise _damaged(archive, f"{file} is not a whole number of records of {size} bytes")
        records = np.frombuffer(b"".join(members[file] for file in files), np.uint8).reshape(-1, size)
        labels = {feature: records[:, i] for i, feature in enumerate(names)}
        _check_labels(archive, labels, {feature: len(values) for feature, values in class_names.items()})
        height, width, channels = CIFAR_SHAPE
        planes = records[:, len(names) :].reshape(-1, channels, height, width)
        return _Part(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, id_format)

    return _Contents({"train": part(train, "train_{:05d}"), "test": part(test, "test_{:05d}")}, class_names)


def _read_svhn(train: Path, test: Path) -> _Contents:
    """In the files images are `[32, 32, 3, N]` and labels 1 to 10, where 10 is the digit 0."""
    from scipy import io

    def part(path: Path, id_format: str) -> _Part:
        try:
            data = io.loadmat(path, variable_names=["X", "y"])
            images, labels = data["X"], data["y"].reshape(-1)
        except Exception as error:  # scipy has no common class for a damaged file.
            raise _damaged(path, brief(error)) from error
        if images.dtype != np.uint8 or images.shape != (*CIFAR_SHAPE, len(labels)):
            raise _damaged(path, f"images are {images.dtype} {images.shape} for {len(labels)} labels")
        digits = {"label": labels % 10}
        return _Part(np.ascontiguousarray(np.moveaxis(images, -1, 0)), digits, id_format)

    return _Contents({"train": part(train, "train_{:06d}"), "test": part(test, "test_{:06d}")}, {})


def _check_labels(path: Path, labels: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> None:
    for feature, values in labels.items():
        if not len(values) or values.max() >= classes[feature]:
            raise _damaged(path, f"a {feature} is not one of the {classes[feature]} classes, or there are none")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: damaged: {reason}. To repair: rm {path} and run again.")


CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
SVHN_URL = "http://ufldl.stanford.edu/housenumbers"
ORIGINS = {
    "cifar10": _Origin(CIFAR_URL, ("cifar-10-binary.tar.gz",), _read_cifar10),
    "cifar100": _Origin(CIFAR_URL, ("cifar-100-binary.tar.gz",), _read_cifar100),
    "svhn_cropped": _Origin(SVHN_URL, ("train_32x32.mat", "test_32x32.mat"), _read_svhn),
}
PREPARABLE = tuple(ORIGINS)
"""Names of the datasets that `prepare` can prepare."""
