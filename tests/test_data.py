"""Digits, splits, augmentation, and a real CIFAR-10 where there is one."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpevo import data
from bpevo.data import progress

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
