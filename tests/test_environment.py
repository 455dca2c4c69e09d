"""What the environment says changes no number, breaks no start and litters no folder."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import types

import pytest
from test_runs import rows

from bpevo.command import flag_files, jax_setup, process
from bpevo.runs import RunError

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


@pytest.mark.slow
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


# The set-up of jax, in this process.


@pytest.fixture
def unset(monkeypatch) -> None:
    """Of a user with nothing set, and a home directory."""
    for name in [n for n in os.environ if n.startswith(("JAX_", "XLA_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/me")


NOT_HEEDED = {
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32", "JAX_THREEFRY_PARTITIONABLE": "True", "JAX_RANDOM_SEED_OFFSET": "0",
    "JAX_ENABLE_X64": "False", "JAX_DEBUG_NANS": "False", "JAX_DISABLE_JIT": "False", "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
}  # fmt: skip


def test_what_is_not_heeded_is_told_with_what_holds_instead(unset, monkeypatch):
    assert jax_setup.not_heeded() == {}
    others = {
        "JAX_DEBUG_INFS": ("Yes", "False"),
        "JAX_TRANSFER_GUARD": ("log", "allow"),
        "JAX_DEBUG_KEY_REUSE": ("t", "False"),
    }
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    for name, (value, _) in others.items():
        monkeypatch.setenv(name, value)
    assert jax_setup.not_heeded() == NOT_HEEDED | {name: holds for name, (_, holds) in others.items()}


@pytest.mark.parametrize(
    "name, heeded, not_heeded",
    [
        ("JAX_THREEFRY_PARTITIONABLE", ("", " ", "1", "TRUE", "t", "yes", "y", " on "), ("0", "off", "maybe")),
        ("JAX_ENABLE_X64", ("", "0", "false", "off"), ("1", "true", "T", "yes", "y", "ON")),
        ("JAX_RANDOM_SEED_OFFSET", ("0", ""), ("1",)),
        ("JAX_NUMPY_RANK_PROMOTION", ("Allow", ""), ("raise",)),
    ],
)
def test_what_says_the_same_or_nothing_is_heeded(unset, monkeypatch, name, heeded, not_heeded):
    for texts, told in ((heeded, []), (not_heeded, [name])):
        for text in texts:
            monkeypatch.setenv(name, text)
            assert list(jax_setup.not_heeded()) == told, text


@pytest.fixture
def configured(unset, monkeypatch):
    """Sets a jax up that is none; returns what it was told beside FIXED."""
    monkeypatch.setattr(jax_setup, "usable_cpus", lambda: 7)

    def configure(error: Exception | None = None, **options) -> dict:
        def local_devices():
            if error:
                raise error

        told: dict = {}
        config = types.SimpleNamespace(update=told.__setitem__)
        monkeypatch.setattr(jax_setup, "jax", types.SimpleNamespace(config=config, local_devices=local_devices))
        jax_setup.configure_jax(**options)
        assert {name: told.pop(name) for name in jax_setup.FIXED} == jax_setup.FIXED
        return told

    return configure


KEPT = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": 0}


def test_a_command_has_a_device_per_core_and_keeps_what_it_compiles(configured, monkeypatch):
    own = {"jax_num_cpu_devices": 7, "jax_compilation_cache_dir": "/home/me/.cache/bpevo/jax"}
    assert configured() == KEPT | own
    assert configured(leave_accelerators=True) == KEPT | own | {"jax_platforms": "cpu"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert configured()["jax_compilation_cache_dir"] == "/caches/bpevo/jax"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    assert configured() == KEPT | {"jax_num_cpu_devices": 7}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert configured() == KEPT
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    assert configured() == KEPT


def test_without_a_home_nothing_is_kept(configured, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert jax_setup.cache_folder() is None and configured() == KEPT | {"jax_num_cpu_devices": 7}


def test_a_jax_without_devices_says_what_was_asked_for_and_why_there_is_none(configured, monkeypatch):
    way_out = (
        "; unset JAX_PLATFORMS, or install what that device needs: pip install '.[cuda12]', '.[cuda13]' or '.[tpu]'"
    )
    for error, said in (
        (RuntimeError("first line\nsecond line"), "jax finds no device: first line"),
        (AssertionError(), "jax finds no device"),
    ):
        with pytest.raises(RunError) as raised:
            configured(error)
        assert str(raised.value) == said + way_out
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    with pytest.raises(RunError, match="^jax finds no device for JAX_PLATFORMS=tpu: no; unset"):
        configured(RuntimeError("no"))


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


def test_of_several_files_the_first_one_wins_and_blank_lines_and_comments_say_nothing(tmp_path):
    (tmp_path / "a").write_text(
        "\ufeff# a comment\n\n  --seed=1  \n   \n// another\n\t # indented\n--epochs=1\n", encoding="utf-8"
    )
    (tmp_path / "b").write_text("--seed=2\n--epochs=2\n--top=2\n")
    read = flag_files.expanded(["-flagfile", str(tmp_path / "a"), "--top=3", f"--flagfile={tmp_path / 'b'}", "--lag=3"])
    assert read == ["--seed=2", "--epochs=2", "--top=2", "--seed=1", "--epochs=1", "--top=3", "--lag=3"]
    with pytest.raises(ValueError, match="^--flagfile needs a path: "):
        flag_files.expanded(["--seed=3", "--flagfile"])


def test_a_flag_file_may_have_a_million_bytes_and_files_may_be_eight_deep(tmp_path):
    (tmp_path / "8").write_bytes(b"--seed=8".ljust(10**6))
    for depth in range(1, 8):
        (tmp_path / str(depth)).write_text(f"--flagfile={tmp_path / str(depth + 1)}\n")
    assert flag_files.expanded([f"--flagfile={tmp_path / '1'}"]) == ["--seed=8"]
    (tmp_path / "0").write_text(f"--flagfile={tmp_path / '1'}\n")
    with pytest.raises(
        ValueError, match=f"^flag files name each other more than 8 deep, the last is {tmp_path / '8'}$"
    ):
        flag_files.expanded([f"--flagfile={tmp_path / '0'}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the flag file .*: No such file"), (b"#\xff", "is not a UTF-8 text: .* at byte 1$"),
     (b"#" * 1_000_001, "is longer than 1,000,000 bytes$")],
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
            made.append(f"started, daemon {self.daemon}")  # else it would keep a process that ends

        def cancel(self):
            made.append("cancelled")

    monkeypatch.setattr(process.threading, "Timer", Timer)
    with process.time_limit(2.5):
        assert made == [(9000, os.kill, (os.getpid(), signal.SIGTERM)), "started, daemon True"]
    assert made[2:] == ["cancelled"]
    with process.time_limit(None):
        assert len(made) == 3


def test_max_hours_ends_a_run_as_a_termination_does_and_the_same_command_continues(environment, clean_run, tmp_path):
    arguments = (*SMALL, f"--workdir={tmp_path}", "--max_evaluations=100000")
    done = command("launch", *arguments, "--max_hours=0.003", env=environment)
    assert done.returncode == 143 and "the same command continues" in done.stdout
    stored = len(rows(tmp_path)["evaluations"])
    done = command("launch", *SMALL, f"--workdir={tmp_path}", f"--max_evaluations={max(8, stored)}", env=environment)
    assert done.returncode == 0 and len(rows(tmp_path)["evaluations"]) >= stored
    whole, continued = rows(clean_run)["proposals"], rows(tmp_path)["proposals"]
    assert set(whole) <= set(continued)


# Signals.

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers():
    """The handlers of this process, restored afterwards."""

    def now() -> list:
        return [signal.getsignal(number) for number in SIGNALS]

    before = now()
    yield now
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_a_signal_stops_the_search_or_at_once_and_decides_the_exit_code(capfd):
    interruption, stops = process.Interruption(), []
    assert interruption.code == 130
    with pytest.raises(KeyboardInterrupt):
        interruption._handle(signal.SIGTERM, None)
    assert interruption.code == 143 and capfd.readouterr() == ("", "")
    interruption.search = types.SimpleNamespace(stop=lambda: stops.append("stop"))
    interruption._handle(signal.SIGHUP, None)
    assert (interruption.code, stops) == (129, ["stop"]) and capfd.readouterr() == ("", f"{process.STOPPING}\n")
    shown = []
    interruption.notice = lambda line: not shown.append(line)  # a display shows it
    interruption._handle(signal.SIGINT, None)
    assert shown == [process.STOPPING] and len(stops) == 2 and capfd.readouterr() == ("", "")


def test_handlers_are_installed_but_for_what_is_ignored_and_come_back(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before, interruption = handlers(), process.Interruption()
    interruption.restore()
    assert handlers() == before  # nothing was installed yet
    with interruption.installed():
        own = interruption._handle
        assert handlers() == [own, own, signal.SIG_IGN]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interruption.restore()  # what a library took
        assert handlers() == [own, own, signal.SIG_IGN]
    assert handlers() == before


def test_outside_of_the_main_thread_no_handler_is_installed(handlers):
    before, seen = handlers(), []

    def run() -> None:
        with process.Interruption().installed():
            seen.append(handlers())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


# An output that goes away.


def test_an_output_without_a_stream_or_with_one_that_fails_takes_everything():
    nowhere = process.Output(None)
    assert nowhere.write("four") == 4
    nowhere.close()
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:
        output = process.Output(stream)
        assert output.errors == "replace" and output.write("seen") == 4
        output.flush()
        assert os.read(reader, 10) == b"seen"
        os.close(reader)
        assert output.write("lost") == 4
        output.flush()  # to nobody
        assert output.write("x" * 100_000) == 100_000 and not output.flush()


def test_a_failed_write_counts_as_written():
    def fail(text: str = "") -> int:
        raise BrokenPipeError

    output = process.Output(types.SimpleNamespace(write=fail, flush=fail, fileno=fail))
    assert output.write("lost") == 4 and output.flush() is None


def test_a_message_that_nobody_reads_leaves_the_exit_code(capsys, monkeypatch):
    assert process.fail("bpevo.mine", "why") == 2 and capsys.readouterr().err == "bpevo.mine: why\n"
    monkeypatch.setattr(sys, "stderr", None)
    assert process.fail("bpevo.mine", "why", 75) == 75
