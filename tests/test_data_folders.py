"""Where data sets may lie: local folders that exist, `~` expanded, TFDS's own default; nothing is made by mistake."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from test_data_tfds import TRAIN, origin, prepared, silent  # noqa: F401 (the first two: a small CIFAR-10, prepared)

from bpevo import data
from bpevo.data import tfds_reader


def homeless(folder: pathlib.Path) -> dict[str, str]:
    """An environment without a home directory: as a user without an entry in the password file, in a container."""
    (folder / "sitecustomize.py").write_text(
        "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR")}
    return kept | {"PYTHONPATH": f"{pathlib.Path(__file__).parents[1]}{os.pathsep}{folder}"}


def python(code: str, **options) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "place", ["gs://bucket/tfds", "s3://bucket", "hdfs://host/path", pathlib.Path("gs://bucket/tfds")]
)
@pytest.mark.parametrize("use", [data.load, data.prepare])
def test_a_data_dir_that_is_no_local_folder_is_refused_and_makes_none(use, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match="local folders only.*--data_dir"):
        use("cifar10", place)
    monkeypatch.setenv("TFDS_DATA_DIR", str(place))  # as cloud machines set it
    with pytest.raises(data.DataError, match="local folders only"):
        use("cifar10")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("use", [data.load, data.prepare])
def test_a_data_dir_that_is_misspelt_is_said_so_and_nothing_is_made_or_downloaded(use, tmp_path, monkeypatch):
    monkeypatch.setattr("bpevo.data.download._open", lambda url: pytest.fail("downloads"))
    wrong = tmp_path / "my tfsd"
    with pytest.raises(data.DataError, match=f"{wrong}: there is no such folder.*mkdir -p '{wrong}'$"):
        use("cifar10", wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(data.DataError, match="file: this is no folder"):
        use("cifar10", tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_tilde_in_data_dir_is_the_home_directory(prepared, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(prepared.parent))
    monkeypatch.chdir(tmp_path)
    loaded = data.load("cifar10", f"~/{prepared.name}", download=False, cache_dir=tmp_path / "cache", progress=silent)
    assert len(loaded.train_labels) == TRAIN and not (tmp_path / "~").exists()


def test_the_default_folder_need_not_be_there_and_is_tfdss_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert tfds_reader.data_root() == tfds_reader.data_root("") == tmp_path / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert tfds_reader.data_root() == tmp_path / "elsewhere"


def test_without_a_home_directory_data_dir_is_asked_for_and_enough(prepared, tmp_path):  # noqa: F811
    environment = homeless(tmp_path)
    asked = "from bpevo import data\ntry: data.load('cifar10')\nexcept data.DataError as error: print(error)"
    found = python(asked, env=environment, cwd=tmp_path)
    assert found.startswith("~/tensorflow_datasets: no home directory is known") and "--data_dir" in found
    copy = shutil.copytree(prepared, tmp_path / "copy")
    given = f"from bpevo import data\nprint(len(data.load('cifar10', {str(copy)!r}, download=False).train_labels))"
    assert python(given, env=environment, cwd=tmp_path) == str(TRAIN)
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"sitecustomize.py", "copy"}
