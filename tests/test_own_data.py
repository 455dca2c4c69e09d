"""Data of one's own by `--dataset=file.npz` and `package.module:function`; a search on it with a network of one's own."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import own_networks
import pytest

import bpevo
from bpevo import data
from bpevo.command import plans
from bpevo.runs import RunDatabase, RunError

HERE = pathlib.Path(__file__).parent
GOOD = {
    "x_train": np.arange(60 * 4 * 4, dtype=np.uint8).reshape(60, 4, 4),
    "y_train": np.arange(60) % 3,
    "x_test": np.zeros((12, 4, 4), np.uint8),
    "y_test": np.arange(12) % 3,
}


def saved(path: pathlib.Path, **changes) -> str:
    arrays = {name: a for name, a in (GOOD | changes).items() if a is not None}
    np.savez(path, **arrays)
    return str(path)


def test_a_file_of_images_is_a_dataset_that_is_fed_as_any_other(tmp_path):
    found = data.load(saved(tmp_path / "mine.npz"))
    assert (found.num_classes, found.flip, found.pad) == (3, False, 0)
    np.testing.assert_array_equal(found.train_images, GOOD["x_train"][..., None])
    np.testing.assert_array_equal(found.test_labels, GOOD["y_test"])
    assert found.train_images.dtype == np.uint8 and found.train_labels.dtype == np.int32
    colour = np.zeros((12, 4, 4, 3), np.uint8)
    assert data.load(saved(tmp_path / "c.npz", x_train=colour, y_train=np.arange(12) % 3, x_test=colour)).flip is False


def test_floats_are_fed_as_they_are():
    found, made = data.load("own_networks:blobs"), own_networks.blobs()
    np.testing.assert_array_equal(found.train_images, made["x_train"].astype(np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_test": None}, "has no x_test; it has x_train, y_train, y_test"),
        ({"y_train": np.arange(59)}, "x_train has 60 examples and y_train 59 labels"),
        ({"y_train": np.arange(60) - 1}, "y_train is int64 .*: the label -1 of example 0 is negative"),
        ({"y_train": np.ones(60)}, "y_train is float64 .*: give integers from 0"),
        ({"y_train": np.ones((60, 3), int)}, r"y_train is int64 \[60, 3\]: give integers"),
        ({"y_train": np.zeros(60, int), "y_test": np.zeros(12, int)}, "make 1 classes"),
        ({"x_train": np.full((60, 4), np.nan)}, "x_train is float64 .*: example 0 is not finite"),
        (
            {"x_train": np.zeros((60, 5, 4), np.uint8)},
            r"x_train is uint8 .*5, 4, 1\] and x_test uint8 .*4, 4, 1\]: not of one kind",
        ),
        ({"x_train": np.zeros((60, 4, 4), np.int64)}, "x_train is int64 .*: give uint8 images"),
        ({"x_train": np.zeros((0, 4, 4), np.uint8), "y_train": np.zeros(0, int)}, "x_train is uint8 .*: empty"),
        ({"x_train": np.array([{}] * 60)}, "it holds Python objects"),
    ],
)
def test_a_bad_array_is_named_with_what_it_should_be(tmp_path, changes, message):
    with pytest.raises(data.DataError, match=message):
        data.load(saved(tmp_path / "mine.npz", **changes))


def test_a_network_that_cannot_take_the_samples_is_refused_before_anything_is_stored(tmp_path):
    features = saved(tmp_path / "mine.npz", x_train=np.ones((60, 20)), x_test=np.ones((12, 20)))
    with pytest.raises(
        plans.UsageError, match=r"^a Wide ResNet takes images \[H, W, C\], not samples of the shape \[20\]; an MLP"
    ):
        bpevo.Search(tmp_path / "run", dataset=features, batch_size=8, model="wrn-10-1", epochs=1).run()
    assert not (tmp_path / "run").exists()


def test_the_bounds_of_labels_and_forms(tmp_path):
    from bpevo.data.own import from_arrays

    def made(**changes) -> data.Dataset:
        return from_arrays("mine", GOOD | changes)

    two, many = np.arange(12) % 2, 2**20
    assert (
        made(y_train=np.arange(60) % 2, y_test=two).num_classes == 2 and made(y_test=two + many - 2).num_classes == many
    )
    assert made(y_train=np.zeros(60, np.uint8), y_test=two).num_classes == 2
    floats = {"x_train": np.ones((60, 1)), "x_test": np.ones((12, 1), np.float32)}
    assert made(**floats).train_images.dtype == np.float32 and (made().name, made().source) == ("mine", "mine")
    spoilt = np.ones((60, 2, 3))
    spoilt[[7, 9], 1, 2] = np.inf
    for changes, message in (
        ({"y_test": two + many - 1}, "labels up to 1,048,576 make 1,048,577 classes; number them from 0"),
        ({"y_test": np.array([0, 1, -3] * 4)}, r"y_test is int64 \[12\]: the label -3 of example 2 is negative"),
        (
            {"y_test": np.full(12, 2**31)},
            "y_test is int64 .*: the label 2147483648 is too large; number the classes from 0",
        ),
        ({"y_test": np.full(12, 2**31 - 1)}, "labels up to 2,147,483,647 make 2,147,483,648 classes"),
        ({"x_train": spoilt}, r"x_train is float64 \[60, 2, 3\]: example 7 is not finite as float32 \(2 such\)"),
        ({"x_train": np.full((60, 1), 1e39)}, r"example 0 is not finite as float32 \(60 such\)"),
        ({"x_train": np.ones(60)}, r"x_train is float64 \[60\]: give uint8 images"),
        ({"x_train": np.ones((60, 4), np.uint8)}, r"x_train is uint8 \[60, 4\]: give uint8 images"),
        ({"x_test": np.ones((12, 4, 4, 1), np.float32)}, "x_train is uint8 .* and x_test float32 .*: not of one kind"),
        ({"y_test": np.zeros(0, int)}, r"y_test is int64 \[0\]: empty"),
        ({"x_test": np.zeros((13, 4, 4), np.uint8)}, "x_test has 13 examples and y_test 12 labels"),
    ):
        with pytest.raises(data.DataError, match=f"^--dataset=mine: .*{message}"):
            made(**changes)


def test_what_a_function_may_be_and_return(monkeypatch):
    found = data.load("own_networks:blobs")
    monkeypatch.setattr(own_networks, "blobs", lambda: found)
    same = data.load("own_networks:blobs")
    assert same.num_classes == 3 and np.array_equal(same.train_images, found.train_images)
    double = dataclasses.replace(
        found, train_images=np.float64(found.train_images), test_images=np.float64(found.test_images)
    )
    monkeypatch.setattr(own_networks, "blobs", lambda: double)
    assert data.load("own_networks:blobs").train_images.dtype == np.float32
    for wrong, message in (
        ({"num_classes": 2}, "there is a label 2, but num_classes is 2$"),
        ({"train_labels": found.train_labels[1:]}, "x_train has .* examples and y_train .* labels"),
        ({"test_labels": np.float32(found.test_labels)}, "y_test is float32 .*: give integers from 0"),
        ({"pad": 4}, r"flip=False and pad=4 are of images \[N, H, W, C\], pad at least 0; x_train is \[90, 5\]$"),
        ({"pad": -1}, "flip=False and pad=-1"),
    ):
        monkeypatch.setattr(own_networks, "blobs", lambda wrong=wrong: dataclasses.replace(found, **wrong))
        with pytest.raises(data.DataError, match=f"^--dataset=own_networks:blobs: {message}"):
            data.load("own_networks:blobs")
    monkeypatch.setattr(own_networks, "blobs", lambda: {"x_train": 1})
    with pytest.raises(data.DataError, match="has no y_train, x_test, y_test; it has x_train$"):
        data.load("own_networks:blobs")
    monkeypatch.setattr(own_networks, "blobs", dict)
    with pytest.raises(data.DataError, match="has no x_train, y_train, x_test, y_test; it has nothing$"):
        data.load("own_networks:blobs")
    monkeypatch.setattr(own_networks, "blobs", 3)
    with pytest.raises(data.DataError, match="^--dataset=own_networks:blobs is a int, no function$"):
        data.load("own_networks:blobs")


def test_files_and_functions_that_give_no_data_are_named(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (
        (str(tmp_path / "none.npz"), "none.npz: No such file"),
        (str(tmp_path / "text.npz"), "cannot be read as .npz"),
        ("own_networks:number", "returns a .*, no dict with x_train"),
        ("own_networks:raises", "fails: .*no weights found"),
        ("own_networks:nobody", "nobody"),
        ("no_such_module:f", "no_such_module"),
    ):
        with pytest.raises(data.DataError, match=message):
            data.load(name)


@pytest.mark.slow
def test_a_search_on_ones_own_network_and_arrays_survives_a_kill_and_is_evaluated_and_reported(tmp_path):
    """A GELU network with batch norm and dropout; by command line, then by Python."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 132)
    x = (np.eye(3)[labels][:, :, None] * random.uniform(100, 200, (132, 3, 5))).astype(np.uint8)
    arrays = {"x_train": x[:120], "y_train": labels[:120], "x_test": x[120:], "y_test": labels[120:]}
    settings = {
        "dataset": saved(tmp_path / "mine.npz", **arrays), "model": "own_networks:gelu", "optimizer": "adamw:b2=0.95",
        "learning_rates": "0.03,0.003", "batch_size": 20, "epochs": 2, "slots": 4, "max_evaluations": 30, "elite_size": 4,
        "lag": 4, "top": 2, "repeats": 2, "checkpoint_minutes": 0,
    }  # fmt: skip
    workdir = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "bpevo.launch",
        f"--workdir={workdir}",
        *(f"--{k}={v}" for k, v in settings.items()),
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=pathlib.Path(__file__).parent, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(0.2)
            if (workdir / "run.sqlite").exists():
                with RunDatabase.reading(workdir) as database:
                    if len(database.rows()) > 4:
                        break
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(
        command, cwd=pathlib.Path(__file__).parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "own_networks:gelu on" in done.stdout, done.stderr
    found = bpevo.open(workdir)
    assert found.settings["optimizer"] == "adamw:b2=0.95" and found.settings["model_crc32"]
    with RunDatabase.reading(workdir) as database:
        assert all(row.curve["train_loss"][0] for row in database.rows() if row.status == "done")
        control = database.rows().of(stage="control", equation="g")
    assert max(row.accuracy for row in control) > 0.6  # a third would be chance
    with pytest.raises(RunError, match="optimizer: 'adamw:b2=0.95' in the run, 'sgd' now"):
        bpevo.Search(workdir, **settings | {"optimizer": "sgd"}).run()
    edited = mock.patch.object(own_networks.nn, "gelu", own_networks.nn.relu)  # the parameters stay
    with edited, pytest.raises(RunError, match=r"\n  model_code_crc32: \d+ in the run, \d+ now\n"):
        bpevo.Search(workdir, **settings).run()
    evaluated = bpevo.Evaluation(workdir, top=1, finalists=1, repeats=2, selection_repeats=1, slots=4).run()
    assert evaluated.settings["model"] == "own_networks:gelu" and any(
        "backprop" in line.lower() for line in evaluated.remarks
    )
    assert "own_networks:gelu" in bpevo.open(workdir).report()[0].read_text(encoding="utf-8")
