"""What the environment says changes no number, breaks no start and litters no folder."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from test_runs import rows

from bpevo.command import flag_files, process

REPOSITORY = pathlib.Path(__file__).parents[1]
SMALL = (
    "--dataset=digits", "--model=mlp-8-8", "--train_examples=64", "--batch_size=32", "--epochs=2", "--slots=2",
    "--learning_rates=0.3", "--max_evaluations=8", "--elite_size=4", "--initial=known", "--top=1", "--repeats=1", "--lag=2",
    "--noselfcheck", "--noequivalence",
)  # fmt: skip
HOSTILE = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "5",
    "JAX_ENABLE_X64": "1",
    "JAX_DEBUG_NANS": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a user with nothing set."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_", "LC_", "LANG", "PYTHON"))}
    return clean | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}


def command(name: str, *arguments: object, env: dict[str, str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"bpevo.{name}", *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clean_run(environment, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("clean")
    done = command("launch", *SMALL, f"--workdir={workdir}", env=environment)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_search_has_the_same_rows_whatever_jax_is_told_by_the_environment(environment, clean_run, tmp_path):
    done = command("launch", *SMALL, f"--workdir={tmp_path}", env=environment | HOSTILE)
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path) == rows(clean_run)
    table = rows(tmp_path)["evaluations"]
    assert any(row[5] == "diverged" for row in table) or len(table) >= 12  # debug_nans would have ended it


def test_the_doctor_names_each_of_them(environment):
    done = command("doctor", env=environment | HOSTILE)
    assert done.returncode == 0 and "nothing is wrong" in done.stdout
    for name, value in HOSTILE.items():
        assert f"{name}={value} is not heeded" in done.stdout


def test_what_changes_numbers_and_is_the_users_is_recorded_and_a_change_is_said(environment, clean_run):
    changed = environment | {"JAX_DEFAULT_MATMUL_PRECISION": "float32", "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    done = command("launch", *SMALL, f"--workdir={clean_run}", env=changed)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "not bit-identical to its beginning: matmul precision default then, float32 now; XLA_FLAGS none then" in said


def test_a_platform_that_is_not_there_is_one_line(environment):
    for name in ("launch", "doctor"):
        done = command(name, *(SMALL if name == "launch" else ()), env=environment | {"JAX_PLATFORMS": "cuda"})
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith(f"bpevo.{name}: jax finds no device for JAX_PLATFORMS=cuda")


def test_without_a_home_nothing_is_called_tilde(environment, tmp_path):
    """As a user without an entry in the password file, such as a container's."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\ndef getpwuid(uid): raise KeyError(uid)\npwd.getpwuid = getpwuid\n"
    )
    homeless = {k: v for k, v in environment.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    homeless["PYTHONPATH"] += f":{tmp_path}"
    place = tmp_path / "here"
    place.mkdir()
    done = command("launch", *SMALL, "--workdir=run", env=homeless, cwd=place)
    assert done.returncode == 0, done.stderr
    refused = command("launch", *SMALL, "--workdir=~/run", env=homeless, cwd=place)
    assert refused.returncode == 2 and "--workdir=~/run: no home directory is known" in refused.stderr
    assert [p.name for p in place.iterdir()] == ["run"]


def test_a_tilde_in_a_path_is_the_home_directory(environment, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    env = environment | {"HOME": str(tmp_path / "home")}
    done = command("launch", *SMALL, "--workdir=~/run", env=env, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "run" / "run.sqlite").exists() and not list((tmp_path / "elsewhere").iterdir())


# Flag files.


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["", "C"])
def test_a_flag_file_may_have_a_byte_order_mark_and_any_comment_whatever_the_locale(environment, tmp_path, locale):
    text = "\ufeff--dataset=nothing_of_this_name\n# größer als π\n\n// too\n--model=mlp-8\n"
    (tmp_path / "flags").write_text(text, encoding="utf-8")
    done = command(
        "launch", f"--flagfile={tmp_path / 'flags'}", f"--workdir={tmp_path / 'run'}", env=environment | locale
    )
    assert done.returncode == 2 and "nothing_of_this_name" in done.stderr  # it was read to its end and heeded


def test_flags_beside_a_file_win_over_it_and_files_may_name_files(tmp_path):
    (tmp_path / "inner").write_text("--seed=1\n--epochs=1\n")
    (tmp_path / "outer").write_text(f"--flagfile={tmp_path / 'inner'}\n--epochs=2\n")
    assert flag_files.expanded(["--seed=3", "--flagfile", str(tmp_path / "outer"), "--", "--flagfile=x"]) == [
        "--seed=1", "--epochs=1", "--epochs=2", "--seed=3", "--", "--flagfile=x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the flag file .*: No such file"), (b"\xff", "is not a UTF-8 text"), (b"#" * 1_000_001, "is longer")],
)  # fmt: skip
def test_a_flag_file_that_is_none_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "flags").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        flag_files.expanded([f"--flagfile={tmp_path / 'flags'}"])


def test_flag_files_without_an_end_are_refused(tmp_path):
    (tmp_path / "flags").write_text(f"--flagfile={tmp_path / 'flags'}\n")
    with pytest.raises(ValueError, match="name each other more than"):
        flag_files.expanded([f"--flagfile={tmp_path / 'flags'}"])
    with pytest.raises(ValueError, match="is longer than"):
        flag_files.expanded(["--flagfile=/dev/zero"])


# Time.


def test_max_hours_are_of_3600_seconds(monkeypatch):
    made = []

    class Timer:
        def __init__(self, seconds, function, arguments):
            made.append((seconds, function, arguments))

        def start(self):
            made.append("started")

        def cancel(self):
            made.append("cancelled")

    monkeypatch.setattr(process.threading, "Timer", Timer)
    with process.time_limit(2.5):
        assert made == [(9000, os.kill, (os.getpid(), signal.SIGTERM)), "started"]
    assert made[-1] == "cancelled"


def test_max_hours_ends_a_run_as_a_termination_does_and_the_same_command_continues(environment, clean_run, tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}", "--max_evaluations=100000")
    done = command("launch", *arguments, "--max_hours=0.003", env=environment)
    assert done.returncode == 143 and "the same command continues" in done.stdout
    stored = len(rows(tmp_path)["evaluations"])
    done = command("launch", *SMALL, f"--workdir={tmp_path}", f"--max_evaluations={max(8, stored)}", env=environment)
    assert done.returncode == 0 and len(rows(tmp_path)["evaluations"]) >= stored
    whole, continued = rows(clean_run)["proposals"], rows(tmp_path)["proposals"]
    assert set(whole) <= set(continued)
