"""Digits, splits, augmentation, and a real CIFAR-10 where there is one."""

import contextlib
import hashlib
import io
import logging
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import data
from bpevo.data import cache, download, progress, tfds_reader
from bpevo.data.errors import brief
from bpevo.data.prepare import _check_labels, _examples, _Part, _read_svhn

SHARED_TFDS = pathlib.Path(__file__).parents[2] / "shared/data/tfds"


# Digits and splits.


def test_digits_are_uint8_of_full_range_and_always_in_the_same_order():
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 8, 8, 1) and digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == np.uint8 and digits.train_labels.dtype == np.int32
    assert digits.train_images.min() == 0 and digits.train_images.max() == 255
    assert (digits.num_classes, digits.flip, digits.pad) == (10, False, 0)
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))
    # Golden: a numpy whose generator changed would silently change every result.
    assert digits.train_labels[:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    np.testing.assert_array_equal(digits.train_images, data.load("digits").train_images)
    # Sixteenths of 255 to the nearest whole number.
    assert np.unique(digits.test_images).tolist() == [
        0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255
    ]  # fmt: skip
    assert len(np.unique(np.concatenate([digits.train_images, digits.test_images]), axis=0)) == 1797  # each once


def numbered(count: int) -> data.Dataset:
    """A dataset whose labels number its examples."""
    images = np.zeros((count, 1, 1, 1), np.uint8)
    numbers = np.arange(count, dtype=np.int32)
    return data.Dataset(
        name="numbered",
        train_images=images,
        train_labels=numbers,
        test_images=images[:7],
        test_labels=-1 - numbers[:7],
        num_classes=count,
        flip=False,
        pad=0,
        source="numbered",
    )


@pytest.mark.parametrize("count, train, validation", [(50_000, 45_000, 5_000), (1437, 1197, 240), (10_000, 9000, 1000)])
def test_split_sizes_are_disjoint_complete_and_deterministic(count, train, validation):
    split = data.train_validation_split(numbered(count))
    assert (len(split.train_labels), len(split.eval_labels)) == (train, validation)
    assert len(split.train_images) == train and len(split.eval_images) == validation
    assert sorted(np.concatenate([split.train_labels, split.eval_labels])) == list(range(count))
    np.testing.assert_array_equal(split.train_labels, data.train_validation_split(numbered(count)).train_labels)


def test_the_last_of_a_fixed_permutation_are_the_validation_set():
    """NumPy's generator of seed 0 permutes ten to 4 6 2 7 3 5 9 0 8 1; a sixth of ten, rounded up, is two."""
    split = data.train_validation_split(numbered(10))
    assert split.train_labels.tolist() == [4, 6, 2, 7, 3, 5, 9, 0] and split.eval_labels.tolist() == [8, 1]
    assert data.train_validation_split(numbered(10), train_examples=1).train_labels.tolist() == [4]
    assert (
        data.train_validation_split(numbered(10), train_examples=8).train_labels.tolist() == split.train_labels.tolist()
    )
    full = data.full_training_split(numbered(10), train_examples=3)
    assert (
        full.train_labels.tolist() == [4, 6, 2] and len(full.train_images) == 3 and full.eval_labels.tolist()[0] == -1
    )
    assert len(data.train_validation_split(numbered(9_999)).eval_labels) == 1667


def test_train_examples_takes_the_first_and_leaves_validation_alone():
    everything = data.train_validation_split(numbered(1437))
    few = data.train_validation_split(numbered(1437), train_examples=100)
    np.testing.assert_array_equal(few.train_labels, everything.train_labels[:100])
    np.testing.assert_array_equal(few.eval_labels, everything.eval_labels)


@pytest.mark.parametrize("train_examples", [0, -1, 1198])
def test_train_examples_out_of_range(train_examples):
    with pytest.raises(ValueError, match="1 to 1,197"):
        data.train_validation_split(numbered(1437), train_examples=train_examples)


def test_full_training_split_evaluates_on_the_test_set():
    split = data.full_training_split(numbered(50))
    assert split.train_labels.tolist() == list(range(50))
    assert split.eval_labels.tolist() == [-1, -2, -3, -4, -5, -6, -7]


def test_split_keeps_images_and_labels_together():
    digits = data.load("digits")
    split = data.train_validation_split(digits)
    where = {image.tobytes(): label for image, label in zip(digits.train_images, digits.train_labels, strict=True)}
    assert all(where[i.tobytes()] == n for i, n in zip(split.eval_images, split.eval_labels, strict=True))


# Augmentation.


def test_normalise_subtracts_the_per_pixel_mean():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
    mean = data.per_pixel_mean(images)
    assert mean.shape == (4, 5, 3) and mean.dtype == np.float32
    np.testing.assert_allclose(mean, (images.astype(np.float64) / 255).mean(axis=0), rtol=1e-6)
    normalised = jax.jit(data.normalise)(images, mean)
    for variant in (normalised, data.normalise(images, mean)):
        assert variant.dtype == jnp.float32
        np.testing.assert_allclose(variant, images / 255 - mean, atol=1e-6)
    with pytest.raises(AssertionError, match="Chex"):
        data.normalise(images, mean[:, :-1])
    np.testing.assert_allclose(normalised.mean(axis=0), 0, atol=1e-6)


def crops_of(image: np.ndarray, flip: bool, pad: int) -> dict[bytes, tuple[bool, int, int]]:
    """Every result that augmentation may have, by a plain loop."""
    height, width, _ = image.shape
    results = {}
    for flipped in [False, True] if flip else [False]:
        padded = np.pad(image[:, ::-1] if flipped else image, ((pad, pad), (pad, pad), (0, 0)))
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                results[padded[top : top + height, left : left + width].tobytes()] = (flipped, top, left)
    return results


@pytest.mark.parametrize("variant", [lambda f: jax.jit(f, static_argnums=(2, 3)), lambda f: f], ids=["jit", "plain"])
@pytest.mark.parametrize("flip, pad", [(True, 2), (False, 2), (True, 0), (False, 0)])
def test_augment_flips_pads_with_zeros_and_crops(flip, pad, variant):
    images = np.random.default_rng(0).normal(size=(400, 6, 5, 3)).astype(np.float32)
    results = np.asarray(variant(data.augment)(jax.random.key(0), jnp.asarray(images), flip, pad))
    assert results.shape == images.shape and results.dtype == np.float32
    seen = [crops_of(image, flip, pad)[result.tobytes()] for image, result in zip(images, results, strict=True)]
    assert len(set(seen)) == (2 if flip else 1) * (2 * pad + 1) ** 2  # every flip and offset occurs
    counts = np.unique([flipped for flipped, _, _ in seen], return_counts=True)[1]
    assert counts.min() > 150


def test_augment_depends_on_the_key_and_runs_in_scan_and_vmap():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 4)
    augment = jax.jit(data.augment, static_argnums=(2, 3))
    one_by_one = jnp.stack([augment(key, images, True, 4) for key in keys])
    assert not jnp.array_equal(one_by_one[0], one_by_one[1])
    scanned = jax.jit(lambda: jax.lax.scan(lambda c, key: (c, data.augment(key, images, True, 4)), 0, keys)[1])()
    mapped = jax.jit(jax.vmap(lambda key: data.augment(key, images, True, 4)))(keys)
    np.testing.assert_array_equal(scanned, one_by_one)
    np.testing.assert_array_equal(mapped, one_by_one)


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch, capsys):
    lines = []
    monkeypatch.setenv("FORCE_COLOR", "1")  # gives no cursor that moves
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: lines.append(text % values))
    with progress.reporter() as report:
        report("Decoding", 5, 10)  # ten seconds have not passed
        report("Decoding", 10, 10)
    assert lines == ["Decoding: 10 of 10"] and capsys.readouterr().err == ""


def test_lines_come_ten_seconds_apart_for_each_task_and_at_its_end(monkeypatch):
    lines, now = [], [100.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress.logging, "info", lambda text, *values: lines.append(text % values))
    report = progress._line_hook()
    for seconds, task, done in (
        (0, "a", 1),
        (9.9, "a", 2),
        (10, "a", 3),
        (10, "b", 1),
        (19.9, "a", 4),
        (20, "a", 5),
        (20.1, "a", 9),
    ):
        now[0] = 100 + seconds
        report(task, done, 9)
    assert lines == ["a: 3 of 9", "a: 5 of 9", "a: 9 of 9"]


def test_a_terminal_has_a_bar_for_each_task(monkeypatch):
    bars = types.SimpleNamespace(
        tasks=[], add_task=lambda task, total: bars.tasks.append([task, total]) or len(bars.tasks) - 1
    )
    bars.update = lambda number, completed, total: bars.tasks[number].append((completed, total))

    class Bars:
        def __init__(self, console, transient):
            assert transient and console.stderr

        __enter__, __exit__ = lambda self: bars, lambda *_: None

    terminal = types.SimpleNamespace(is_interactive=True, stderr=True, file=types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(progress, "Console", lambda stderr: terminal)
    monkeypatch.setattr(progress, "Bars", Bars)
    with progress.reporter() as report:
        for what in (("train", 1, 5), ("test", 2, 3), ("train", 5, 5)):
            report(*what)
    assert bars.tasks == [["train", 5, (1, 5), (5, 5)], ["test", 3, (2, 3)]]
    given = lambda *_: None  # noqa: E731
    with progress.reporter(given) as report:
        assert report is given


# Messages, downloads and the cache, piece by piece.


def test_an_error_is_told_by_its_first_line_or_its_type():
    assert brief(ValueError("\n one \ntwo")) == "one " and brief(ValueError()) == "ValueError"
    assert brief(OSError("x" * 301)) == "x" * 300


def test_what_is_received_is_written_counted_and_summed_a_piece_at_a_time():
    def response(length: str | None, *pieces: bytes):
        stream, asked = iter([*pieces, b""]), []
        read = lambda size: asked.append(size) or next(stream)  # noqa: E731
        return types.SimpleNamespace(headers={"Content-Length": length} if length else {}, read=read, asked=asked)

    for length, total, reports in (("7", 7, [(3, 7), (5, 7)]), (None, 0, [(3, 3), (5, 5)]), ("4", 4, [(3, 4), (5, 5)])):
        file, told, made = io.BytesIO(), [], response(length, b"abc", b"de")
        found = download._copy(made, file, lambda *done, told=told: told.append(done))
        assert found == (5, total, hashlib.sha256(b"abcde").hexdigest())
        assert file.getvalue() == b"abcde" and told == reports and set(made.asked) == {2**20}


def test_a_download_of_unknown_length_is_whole_and_of_the_announced_one_too(tmp_path, monkeypatch):
    told = []
    for length in ({}, {"Content-Length": "3"}):
        monkeypatch.setattr(download, "_open", lambda url, length=length: contextlib.closing(Response(b"abc", length)))
        target = tmp_path / str(len(length)) / "file"
        found = download.fetch("url", target, hashlib.sha256(b"abc").hexdigest(), lambda *done: told.append(done))
        assert found == target and target.read_bytes() == b"abc" and [*target.parent.iterdir()] == [target]
    assert told == [("Downloading file", 3, 3)] * 2


class Response(io.BytesIO):
    def __init__(self, content: bytes, headers: dict[str, str]):
        super().__init__(content)
        self.headers = headers


ARRAYS = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "y": np.arange(2, dtype=np.int32)}
SHAPES = {"x": ((2, 3), "uint8"), "y": ((2,), "int32")}


def same(found) -> bool:
    return found is not None and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_cache_is_used_for_the_same_files_and_arrays_of_the_same_form_alone(tmp_path, caplog):
    cache.write([tmp_path / "one" / "deep"], {"file": 3}, ARRAYS)
    folder = tmp_path / "one" / "deep"
    assert same(cache.read(folder, {"file": 3}, SHAPES)) and cache.read(tmp_path, {"file": 3}, SHAPES) is None
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert not caplog.text
        for source, shapes, reason in (
            ({"file": 4}, SHAPES, "it was made from other files"),
            ({"file": 3}, SHAPES | {"x": ((2, 3), "int8")}, r"x.npy holds uint8 (2, 3), not int8 (2, 3)"),
            ({"file": 3}, SHAPES | {"y": ((3,), "int32")}, r"y.npy holds int32 (2,), not int32 (3,)"),
        ):
            assert cache.read(folder, source, shapes) is None and reason in caplog.text
        manifest = folder / cache.MANIFEST
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
        assert cache.read(folder, {"file": 3}, SHAPES) is None
        np.save(folder / "x.npy", ARRAYS["x"] + 1)
        manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
        assert cache.read(folder, {"file": 3}, SHAPES) is None and "x.npy differs from its checksum" in caplog.text
    cache.write([folder], {"file": 3}, ARRAYS)
    assert same(cache.read(folder, {"file": 3}, SHAPES))
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "x.npy", "y.npy"}


def test_a_cache_goes_where_it_can_be_written_and_is_done_without_where_it_cannot(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "a", tmp_path / "b", tmp_path / "c"]
    with caplog.at_level(logging.INFO, logger="absl"):
        cache.write(places, {}, ARRAYS)
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["b"]
        assert f"Cannot write the cache {places[0]}" in caplog.text and f"arrays in {places[1]}." in caplog.text
        assert "could not be cached" not in caplog.text
        cache.write(places[:1] * 2, {}, ARRAYS)
        assert f"could not be cached in {places[0]} or {places[0]}: they are decoded anew" in caplog.text
    monkeypatch.setenv("XDG_CACHE_HOME", "/user")
    user = pathlib.Path("/user/bpevo/set")
    assert cache.folders(tmp_path, "set") == [tmp_path / "bpevo_cache/set", user]
    assert cache.folders(tmp_path, "set", tmp_path / "own") == [tmp_path / "own/set"]
    monkeypatch.setattr(cache.os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folders(tmp_path, "set") == [tmp_path / "bpevo_cache/set"]


# Preparing and decoding, piece by piece.


def test_examples_have_their_ids_and_labels_and_are_reported_every_500_and_at_the_end():
    images, told = np.arange(1001 * 3, dtype=np.int64).astype(np.uint8).reshape(1001, 1, 1, 3), []
    part = _Part(images, {"label": np.arange(1001) % 7, "other": np.arange(1001)}, "train_{:05d}")
    found = list(_examples(part, "Writing", lambda *done: told.append(done)))
    assert told == [("Writing", 500, 1001), ("Writing", 1000, 1001), ("Writing", 1001, 1001)] and len(found) == 1001
    key, example = found[10]
    assert (key, example["id"], example["label"], example["other"]) == (10, "train_00010", 3, 10)
    assert example["image"].getpixel((0, 0)) == (30, 31, 32)


def test_a_damaged_svhn_is_named_with_what_it_holds(tmp_path):
    from scipy import io as scipy_io

    path = tmp_path / "train_32x32.mat"
    for images, labels, reason in (
        (np.zeros((32, 32, 3, 2), np.int16), [1, 2], r"images are int16 \(32, 32, 3, 2\) for 2 labels"),
        (np.zeros((32, 32, 3, 2), np.uint8), [1, 2, 3], r"images are uint8 \(32, 32, 3, 2\) for 3 labels"),
    ):
        scipy_io.savemat(path, {"X": images, "y": np.array(labels)[:, None]})
        with pytest.raises(data.DataError, match=f"^{path}: damaged: {reason}. To repair: rm {path} and run again.$"):
            _read_svhn(path, path)
    path.write_text("no such file")
    with pytest.raises(data.DataError, match="damaged"):
        _read_svhn(path, path)


def test_labels_are_those_of_the_classes_and_there_are_some():
    labels = lambda *values: {"label": np.array(values, np.uint8)}  # noqa: E731
    _check_labels(pathlib.Path("file"), labels(0, 9), {"label": 10})
    for wrong in (labels(0, 10), labels()):
        with pytest.raises(
            data.DataError, match="file: damaged: a label is not one of the 10 classes, or there are none"
        ):
            _check_labels(pathlib.Path("file"), wrong, {"label": 10})


def builder(labels, splits=("train", "test"), **features):
    """What of a TFDS builder is asked for; example i is an image of i."""
    split = types.SimpleNamespace(num_examples=len(labels))

    class Source:
        def __getitems__(self, places):
            return [{"image": np.full((1, 1, 3), i % 256, np.uint8), "label": labels[i]} for i in places]

    known = {"image": types.SimpleNamespace(shape=(1, 1, 3)), "label": types.SimpleNamespace(num_classes=3)}
    info = types.SimpleNamespace(features=known | features, splits=dict.fromkeys(splits, split))
    return types.SimpleNamespace(info=info, name="mine", data_dir="/there", as_data_source=lambda split: Source())


def test_a_split_is_decoded_500_at_a_time_in_its_order():
    told, labels = [], np.arange(1001) % 3
    images, found = tfds_reader.decode(builder(labels), "train", lambda *done: told.append(done))
    assert told == [("Decoding mine train", done, 1001) for done in (500, 1000, 1001)]
    assert images.shape == (1001, 1, 1, 3) and images.dtype == np.uint8 and found.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 2], np.arange(1001) % 256)
    np.testing.assert_array_equal(found, labels)
    assert len(tfds_reader.decode(builder([]), "train", None)[1]) == 0


@pytest.mark.parametrize("labels, form", [([0, 3, 2], "0 to 3"), ([0, -1, 2], "-1 to 2")])
def test_labels_outside_of_the_classes_are_refused(labels, form):
    with pytest.raises(
        data.DataError, match=f"^/there: split 'test' has labels {form}, outside its 3 classes. Choose another"
    ):
        tfds_reader.decode(builder(labels), "test", lambda *_: None)


def test_validation_stands_in_for_a_test_split_that_is_not_there():
    assert tfds_reader.evaluation_split(builder([], ("validation", "train"))) == "validation"
    assert tfds_reader.evaluation_split(builder([], ("validation", "train", "test"))) == "test"
    for splits, named in ((("test",), "test"), (("train", "extra"), "train, extra"), ((), r"\(none\)")):
        with pytest.raises(
            data.DataError, match=f"^/there: dataset_info.json lists the splits {named}; bpevo needs train"
        ):
            tfds_reader.evaluation_split(builder([], splits))


def test_routine_lines_of_tfds_and_harmless_warnings_are_dropped_within_alone(caplog):
    logger = logging.getLogger("absl")
    tfds = "/lib/tensorflow_datasets/core/x.py"
    records = [
        logging.LogRecord("absl", level, path, 1, text, (), None)
        for level, path, text in (
            (logging.INFO, tfds, "Load dataset info"),
            (logging.INFO, "/bpevo/data/cache.py", "Cached"),
            (logging.WARNING, tfds, "A warning"),
            (logging.WARNING, "/x.py", "OpenCV is not installed. We recommend it"),
        )
    ]
    with tfds_reader.without_chatter():
        assert [record.msg for record in records if logger.filter(record)] == ["Cached", "A warning"]
    assert all(map(logger.filter, records))


# Reading a real prepared set.


def test_cifar10_from_a_tfds_directory_and_then_from_the_cache(tmp_path):
    if not SHARED_TFDS.exists():
        pytest.skip("needs a prepared CIFAR-10, which is not part of the project")
    tasks = []
    first = data.load("cifar10", SHARED_TFDS, cache_dir=tmp_path, progress=lambda *args: tasks.append(args))
    assert first.train_images.shape == (50_000, 32, 32, 3) and first.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(first.train_labels).tolist() == [5000] * 10
    assert np.bincount(first.test_labels).tolist() == [1000] * 10
    assert (first.num_classes, first.flip, first.pad) == (10, True, 4)
    assert tasks[-1] == ("Decoding cifar10 test", 10_000, 10_000)
    tasks.clear()
    second = data.load("cifar10", SHARED_TFDS, cache_dir=tmp_path, progress=lambda *args: tasks.append(args))
    assert not tasks
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))
        assert getattr(first, field).dtype == getattr(second, field).dtype
    split = data.train_validation_split(first)
    assert (len(split.train_images), len(split.eval_images)) == (45_000, 5_000)
