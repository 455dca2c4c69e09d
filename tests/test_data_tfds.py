"""Downloading, preparing, reading and caching; every way in which data can be missing, truncated or wrong."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import logging
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import types

import numpy as np
import pytest

from bpevo import data
from bpevo.data import tfds_reader
from bpevo.data.prepare import _write

ARCHIVE = "cifar-10-binary.tar.gz"
TRAIN, TEST = 60, 24
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def silent(task: str, done: int, total: int) -> None:
    pass


def cifar_records(count: int, rng: np.random.Generator) -> np.ndarray:
    """Records of one label byte and 3 x 32 x 32 image bytes; uint8 `[count, 3073]`."""
    records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(count) % 10
    return records


def images_of(records: np.ndarray, labels: int = 1) -> np.ndarray:
    return records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def write_archive(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_cifar10(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    train, test = cifar_records(TRAIN, rng), cifar_records(TEST, rng)
    files = {
        f"cifar-10-batches-bin/data_batch_{i + 1}.bin": part.tobytes() for i, part in enumerate(np.split(train, 5))
    }
    files["cifar-10-batches-bin/test_batch.bin"] = test.tobytes()
    files["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(CLASSES) + "\n\n").encode()
    write_archive(path, files)
    return train, test


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class CutOff(Quiet):
    """Announces twice the bytes that it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)


class Serve:
    """An HTTP server on localhost, in a thread; the context's value is its URL."""

    def __init__(self, handler) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A folder with a small archive in CIFAR-10's format, served; with its records."""
    folder = tmp_path_factory.mktemp("origin")
    train, test = write_cifar10(folder / ARCHIVE)
    with Serve(functools.partial(Quiet, directory=folder)) as url:
        yield folder, url, train, test


@pytest.fixture(scope="module")
def prepared(origin, tmp_path_factory):
    """A data_dir with the small CIFAR-10 downloaded and prepared."""
    folder, url, _, _ = origin
    root = tmp_path_factory.mktemp("prepared")
    tasks = []
    place = data.prepare(
        "cifar10",
        root,
        base_url=url,
        checksums={ARCHIVE: sha256(folder / ARCHIVE)},
        progress=lambda *args: tasks.append(args),
    )
    assert place == root / "cifar10/3.0.2"
    assert {task for task, _, _ in tasks} == {
        f"Downloading {ARCHIVE}",
        "Writing cifar10 train",
        "Writing cifar10 test",
    }
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    """A copy of the prepared data_dir, to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


def load_small(root: pathlib.Path, **options) -> data.Dataset:
    return data.load("cifar10", root, download=False, progress=silent, **options)


# Downloading and preparing.


def test_prepared_set_is_readable_by_unmodified_tfds(prepared, origin):
    import tensorflow_datasets as tfds

    _, _, train, test = origin
    builder = tfds.builder("cifar10", data_dir=prepared, file_format="array_record")
    assert builder.info.features["label"].names == CLASSES
    info = json.loads((prepared / "cifar10/3.0.2/dataset_info.json").read_text())
    assert info["moduleName"] == "tensorflow_datasets.image_classification.cifar"
    for split, records in [("train", train), ("test", test)]:
        source = builder.as_data_source(split)
        assert len(source) == len(records)
        for example in source:
            prefix, number = example["id"].decode().split("_")
            assert prefix == split
            np.testing.assert_array_equal(example["image"], images_of(records)[int(number)])
            assert example["label"] == records[int(number), 0]


def test_load_of_the_prepared_set_leaves_nothing_else_behind(copy, origin):
    _, _, train, _ = origin
    dataset = load_small(copy)
    assert dataset.train_images.shape == (TRAIN, 32, 32, 3) and dataset.test_images.shape == (TEST, 32, 32, 3)
    assert (dataset.flip, dataset.pad) == (True, 4)
    assert sorted(i.tobytes() for i in dataset.train_images) == sorted(i.tobytes() for i in images_of(train))
    assert [path.name for path in (copy / "downloads").iterdir() if path.is_file()] == [ARCHIVE]
    assert sorted(path.name for path in (copy / "bpevo_cache/cifar10-3.0.2").iterdir()) == [
        "manifest.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


def test_archive_already_there_needs_no_network(origin, tmp_path):
    folder, _, _, _ = origin
    (tmp_path / "downloads").mkdir()
    shutil.copy(folder / ARCHIVE, tmp_path / "downloads")
    checksums = {ARCHIVE: sha256(folder / ARCHIVE)}
    data.prepare("cifar10", tmp_path, base_url=refused(), checksums=checksums, progress=silent)
    assert len(load_small(tmp_path).train_labels) == TRAIN


def test_cifar100_has_both_labels(tmp_path):
    records = np.random.default_rng(0).integers(0, 256, (30, 3074), dtype=np.uint8)
    records[:, 0], records[:, 1] = np.arange(30) % 20, np.arange(30) + 70
    (tmp_path / "downloads").mkdir()
    archive = tmp_path / "downloads/cifar-100-binary.tar.gz"
    coarse, fine = ("\n".join(f"{kind}_{i}" for i in range(n)).encode() for kind, n in [("coarse", 20), ("fine", 100)])
    files = {"train.bin": records[:20].tobytes(), "test.bin": records[20:].tobytes()}
    files |= {"coarse_label_names.txt": coarse, "fine_label_names.txt": fine}
    write_archive(archive, {f"cifar-100-binary/{name}": content for name, content in files.items()})
    data.prepare("cifar100", tmp_path, checksums={archive.name: sha256(archive)}, progress=silent)
    dataset = data.load("cifar100", tmp_path, progress=silent)
    assert sorted(dataset.train_labels) == list(range(70, 90)) and dataset.num_classes == 100
    assert (dataset.flip, dataset.pad) == (True, 4)
    wanted = {image.tobytes(): label for image, label in zip(images_of(records, 2), records[:, 1], strict=True)}
    assert all(wanted[i.tobytes()] == n for i, n in zip(dataset.test_images, dataset.test_labels, strict=True))


def test_svhn_labels_ten_are_the_digit_zero(tmp_path):
    from scipy import io as scipy_io

    downloads = tmp_path / "downloads"
    downloads.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8)[:, None] % 10 + 1
    for split in ("train", "test"):
        scipy_io.savemat(downloads / f"{split}_32x32.mat", {"X": images, "y": labels})
    checksums = {path.name: sha256(path) for path in downloads.iterdir()}
    data.prepare("svhn_cropped", tmp_path, checksums=checksums, progress=silent)
    dataset = data.load("svhn_cropped", tmp_path, progress=silent)
    assert (dataset.flip, dataset.pad) == (False, 4)
    wanted = {images[..., i].tobytes(): labels[i, 0] % 10 for i in range(20)}
    assert all(wanted[i.tobytes()] == n for i, n in zip(dataset.train_images, dataset.train_labels, strict=True))


def assert_nothing_kept(root: pathlib.Path) -> None:
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_wrong_checksum_names_file_and_both_sums(origin, tmp_path):
    folder, url, _, _ = origin
    with pytest.raises(data.DataError) as caught:
        data.prepare("cifar10", tmp_path, base_url=url, checksums={ARCHIVE: "0" * 64}, progress=silent)
    for part in (str(tmp_path / "downloads" / ARCHIVE), "0" * 64, sha256(folder / ARCHIVE), "run again"):
        assert part in str(caught.value)
    assert_nothing_kept(tmp_path)


def test_checksums_that_tfds_ships_are_the_default(origin, tmp_path):
    with pytest.raises(data.DataError, match="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"):
        data.prepare("cifar10", tmp_path, base_url=origin[1], progress=silent)


def test_wrong_archive_put_there_by_hand_is_named_and_kept(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / ARCHIVE).write_bytes(b"not an archive")
    with pytest.raises(data.DataError, match=f"wrong checksum.*rm .*{ARCHIVE}"):
        data.load("cifar10", tmp_path, progress=silent)
    assert (tmp_path / "downloads" / ARCHIVE).exists()


def test_transfer_cut_off(tmp_path):
    with Serve(CutOff) as url, pytest.raises(data.DataError, match="cut off after 1,000 of 2,000 bytes"):
        data.prepare("cifar10", tmp_path, base_url=url, progress=silent)
    assert_nothing_kept(tmp_path)


def test_file_not_found_on_the_server(origin, tmp_path):
    with pytest.raises(data.DataError, match="404"):
        data.prepare("cifar10", tmp_path, base_url=origin[1] + "elsewhere", progress=silent)


@pytest.mark.parametrize("damage", ["truncated", "lacking", "ragged", "label"])
def test_damaged_archive_with_the_right_checksum(origin, tmp_path, damage):
    archive = tmp_path / ARCHIVE
    content = (origin[0] / ARCHIVE).read_bytes()
    if damage == "truncated":
        archive.write_bytes(content[: len(content) // 2])
    else:
        with tarfile.open(origin[0] / ARCHIVE) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        folder = "cifar-10-batches-bin"
        if damage == "lacking":
            del files[f"{folder}/test_batch.bin"]
        elif damage == "ragged":
            files[f"{folder}/test_batch.bin"] += b"\0"
        else:
            files[f"{folder}/test_batch.bin"] = b"\x0a" + files[f"{folder}/test_batch.bin"][1:]
        write_archive(archive, files)
    reason = {"truncated": "damaged", "lacking": "lacks .*test_batch", "ragged": "whole number", "label": "10 classes"}
    (tmp_path / "root/downloads").mkdir(parents=True)
    shutil.copy(archive, tmp_path / "root/downloads")
    with pytest.raises(data.DataError, match=f"{ARCHIVE}.*{reason[damage]}.*rm "):
        data.prepare("cifar10", tmp_path / "root", checksums={ARCHIVE: sha256(archive)}, progress=silent)
    assert not (tmp_path / "root/cifar10").exists()


def refused() -> str:
    """A URL on localhost where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def test_no_network_fails_fast(tmp_path):
    start = time.monotonic()
    with pytest.raises(data.DataError, match="refused.*put the file there by hand"):
        data.prepare("cifar10", tmp_path, base_url=refused(), progress=silent)
    assert time.monotonic() - start < 5
    assert_nothing_kept(tmp_path)


def test_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("bpevo.data.download.CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(data.DataError, match="no answer within 0.3 seconds"):
            data.prepare("cifar10", tmp_path, base_url=url, progress=silent)


def test_unwritable_data_dir(tmp_path):
    (tmp_path / "downloads").write_text("")  # a file where a folder must be made
    with pytest.raises(data.DataError, match="cannot be written.*--data_dir"):
        data.prepare("cifar10", tmp_path, base_url=refused(), progress=silent)


# Missing, truncated and wrong data.


@pytest.mark.parametrize("name, nearest", [("cifr10", "cifar10"), ("digit", "digits"), ("CIFAR-100", "cifar100")])
def test_unknown_name_suggests_the_nearest(tmp_path, name, nearest):
    with pytest.raises(data.DataError, match=f"Unknown dataset {name!r}.*'{nearest}'"):
        data.load(name, tmp_path)


def test_unprepared_without_download(tmp_path):
    with pytest.raises(data.DataError, match="cifar10 is not prepared there"):
        load_small(tmp_path)


def test_sets_that_need_tensorflow_say_how(tmp_path):
    with pytest.raises(data.DataError, match="mnist is not prepared there.*download_and_prepare"):
        data.load("mnist", tmp_path, progress=silent)


@pytest.mark.parametrize("name, reason", [("imdb_reviews", "no feature 'image'"), ("imagenette", "None, None, 3")])
def test_unsuitable_sets(tmp_path, name, reason):
    with pytest.raises(data.DataError, match=reason):
        data.load(name, tmp_path)


def test_features_that_are_no_images_with_labels_are_named():
    from tensorflow_datasets import features

    def checked(found) -> None:
        tfds_reader._check_features(types.SimpleNamespace(name="mine", info=types.SimpleNamespace(features=found)))

    image, label = features.Image(shape=(8, 8, 3)), features.ClassLabel(num_classes=3)
    checked(features.FeaturesDict({"image": image, "label": label, "id": features.Text()}))
    for found, fault in (
        (label, "it has no feature 'image' that is an Image; its features: none"),
        ({"image": label, "label": label}, "no feature 'image' that is an Image; its features: image, label"),
        ({"image": image}, "it has no feature 'label' that is a ClassLabel; its features: image"),
        (
            {"image": image, "label": features.Text()},
            "no feature 'label' that is a ClassLabel; its features: image, label",
        ),
        (
            {"image": features.Image(shape=(8, 8, 1), dtype=np.uint16), "label": label},
            r"its images are uint16 \(8, 8, 1\), not uint8 of one size",
        ),
    ):
        with pytest.raises(
            data.DataError, match=f"^Dataset 'mine' is not an image classification set bpevo can use: .*{fault}"
        ):
            checked(features.FeaturesDict(found) if isinstance(found, dict) else found)


@pytest.mark.parametrize("faster", [False, True])
def test_a_set_that_cannot_be_written_is_told_unless_another_process_was_faster(monkeypatch, faster):
    import tensorflow_datasets as tfds

    bars = []

    class Stock:
        name, data_dir, data_dir_root = "mine", "/there/mine", "/there"

        def __init_subclass__(cls, skip_registration):
            assert skip_registration

        def __init__(self, **given):
            assert not given or given == {"data_dir": "/there", "file_format": "array_record"}

        def download_and_prepare(self):
            raise OSError("No space left on device\nat all")

    monkeypatch.setattr(tfds, "display_progress_bar", bars.append)
    monkeypatch.setattr(tfds_reader, "is_prepared", lambda builder: faster)
    told = "^/there/mine: cannot be written: No space left on device. Make room or give another --data_dir.$"
    with contextlib.nullcontext() if faster else pytest.raises(data.DataError, match=told):
        _write(Stock(), None, silent)
    assert bars == [False, True]


def damage_file(path: pathlib.Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "tail":
        path.write_bytes(content[:-100])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])


@pytest.mark.parametrize("how", ["missing", "empty", "half", "tail", "middle"])
def test_damaged_shard(copy, how):
    (shard,) = (copy / "cifar10/3.0.2").glob("cifar10-train*")
    load_small(copy)  # A cache of the undamaged shard does not hide a changed file.
    damage_file(shard, how)
    if how == "middle":  # A shard of unchanged size is not read where there is a good cache.
        shutil.rmtree(copy / "bpevo_cache")
    with pytest.raises(data.DataError, match=r"3\.0\.2.*rm -r .*3\.0\.2 and run again"):
        load_small(copy)


@pytest.mark.parametrize("how", ["missing", "empty", "half"])
def test_damaged_dataset_info(copy, how):
    damage_file(copy / "cifar10/3.0.2/dataset_info.json", how)
    with pytest.raises(data.DataError, match=r"dataset_info\.json.*rm -r .*3\.0\.2 and run again"):
        data.load("cifar10", copy, progress=silent)


@pytest.mark.parametrize("stated", [TEST - 1, TEST + 1])
def test_wrong_number_of_examples(copy, stated):
    info = copy / "cifar10/3.0.2/dataset_info.json"
    info.write_text(info.read_text().replace(f'"{TEST}"', f'"{stated}"'))
    with pytest.raises(data.DataError, match=f"holds {TEST} examples where dataset_info.json says {stated}"):
        load_small(copy)


def test_set_without_a_test_split(copy):
    path = copy / "cifar10/3.0.2/dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))
    with pytest.raises(data.DataError, match="lists the splits train; bpevo needs"):
        load_small(copy)


def test_tfrecord_set_is_not_to_be_deleted(copy):
    path = copy / "cifar10/3.0.2/dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(data.DataError, match="prepared as tfrecord") as caught:
        load_small(copy)
    assert "rm -r" not in str(caught.value)


# The cache.


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "manifest.json"])
@pytest.mark.parametrize("how", ["half", "empty", "middle"])
def test_damaged_cache_is_rebuilt_with_a_warning(copy, caplog, file, how):
    before = load_small(copy)
    damaged = copy / "bpevo_cache/cifar10-3.0.2" / file
    good = damaged.read_bytes()
    damage_file(damaged, how)
    with caplog.at_level(logging.WARNING, logger="absl"):
        after = load_small(copy)
    assert "is unusable" in caplog.text
    np.testing.assert_array_equal(before.train_images, after.train_images)
    np.testing.assert_array_equal(before.test_labels, after.test_labels)
    assert damaged.read_bytes() == good


def test_another_spelling_that_tfds_takes_has_the_same_augmentation(copy):
    first, second = (data.load(name, copy, download=False, progress=silent) for name in ("cifar10", "Cifar10"))
    assert (second.flip, second.pad) == (first.flip, first.pad) == (True, 4)


def test_cache_is_read_instead_of_decoding(copy, monkeypatch):
    first = load_small(copy)
    monkeypatch.setattr(tfds_reader, "decode", None)
    np.testing.assert_array_equal(first.train_images, load_small(copy).train_images)


def test_cache_goes_to_the_users_directory_where_data_dir_is_read_only(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (copy / "bpevo_cache").write_text("in the way")
    first = load_small(copy)
    assert (tmp_path / "user/bpevo/cifar10-3.0.2/manifest.json").exists()
    monkeypatch.setattr(tfds_reader, "decode", None)
    np.testing.assert_array_equal(first.train_images, load_small(copy).train_images)


# The environment.


def test_neither_tensorflow_nor_an_early_import_of_tfds(copy):
    program = (
        "import sys, bpevo.data\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"bpevo.data.load('cifar10', {str(copy)!r}, download=False)\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
