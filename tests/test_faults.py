"""Faults, caused for real: each ends in going on, or in one clear message with nothing lost."""

import contextlib
import dataclasses
import io
import os
import pathlib
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runs import DISTURBED, StandIn, plan, python, rows, search
from test_survival import JOBS, finish, saving
from test_training import SETTINGS, make_trainer

from bpevo.command.process import Output
from bpevo.evolution import PaperController, SameText
from bpevo.report import Progress
from bpevo.runs import RunDatabase, RunError
from bpevo.search import Search
from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers import Checkpoints, LocalWorkers

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    search(workdir, DISTURBED, StandIn(4))
    return rows(workdir)


# Disks.


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *options: str):
    """A file system of its own at `folder`; skips where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stored(workdir) -> tuple[int, int]:
    with RunDatabase.reading(workdir) as database:
        return len(database.proposals()), len(database.rows())


def test_a_full_disk_stops_with_one_message_and_the_search_goes_on_when_there_is_room(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=400k", "tmpfs") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 150_000)
        counted = []
        with pytest.raises(RunError, match=r"run\.sqlite: .*(full|I/O).*free some space and start again"):
            search(disk / "run", DISTURBED, StandIn(4), lambda s, _: counted.append((len(s.proposals), len(s.rows))))
        last = counted[-1]
        found = stored(disk / "run")
        assert found[0] >= last[0] and found[1] >= last[1] > 0  # everything that the search had counted is there
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        search(disk / "run", DISTURBED, StandIn(4))
        assert rows(disk / "run") == undisturbed


def limited_search(workdir: str, limit: int) -> None:
    """Run in a process of its own: no file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        search(workdir, DISTURBED, StandIn(4))
    except RunError as error:
        print(error)


def test_a_write_that_fails_anywhere_loses_nothing(undisturbed, tmp_path):
    """RLIMIT_FSIZE fails writes as a full disk does, and needs no mount."""
    for limit in (100, 5_000, 30_000, 60_000, 120_000):
        process = python(
            "import sys, test_faults as t; t.limited_search(sys.argv[1], int(sys.argv[2]))", tmp_path, limit
        )
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        if output:  # the last may well suffice
            assert len(output.splitlines()) == 1 and ("run.sqlite" in output or "cannot write in the workdir" in output)
    search(tmp_path, DISTURBED, StandIn(4))
    assert rows(tmp_path) == undisturbed


def test_a_checkpoint_that_finds_no_room_costs_the_checkpoint_only(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4k", "tmpfs") as disk:
        said = []

        def workers(trainer):
            return LocalWorkers(trainer, Checkpoints(disk / "checkpoints", {}, 0.0, said.append), said.append)

        search(tmp_path / "run", DISTURBED, StandIn(4), workers=workers)
        assert any("No space left" in line and "the training goes on" in line for line in said)
        assert not list((disk / "checkpoints").glob("*.partial"))
    assert rows(tmp_path / "run") == undisturbed


def test_a_read_only_workdir_is_refused_and_a_finished_run_there_can_be_read(undisturbed, tmp_path):
    search(tmp_path / "run", DISTURBED, StandIn(4))
    with mounted(tmp_path / "there", "--bind", str(tmp_path / "run")) as there:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(there)], check=True)
        with pytest.raises(RunError, match="cannot write in the workdir .*Read-only file system"):
            search(there, DISTURBED, StandIn(4))
        with pytest.raises(RunError, match="cannot write in the workdir .*Read-only file system"):
            search(there / "new", DISTURBED, StandIn(4))
        with RunDatabase.reading(there) as database:
            assert len(database.rows()) == len(undisturbed["evaluations"])


def test_a_disk_that_others_fill_in_mid_search_stops_it_and_it_goes_on_later(undisturbed, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:

        def watch(search, outcomes):
            if len(search.rows) > 50:
                with contextlib.suppress(OSError), open(disk / "ballast", "ab", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass

        with pytest.raises(RunError, match="free some space"):
            search(disk / "run", DISTURBED, StandIn(4), watch)
        (disk / "ballast").unlink()
        search(disk / "run", DISTURBED, StandIn(4))
        assert rows(disk / "run") == undisturbed


# The database file.


def damage_everywhere():
    """(name, damage of the bytes of a database)."""
    yield "empty", lambda content: b""
    for share in (0.01, 0.3, 0.6, 0.99):
        yield f"truncated to {share}", lambda content, share=share: content[: int(len(content) * share)]
    for seed in range(12):

        def overwrite(content, seed=seed):
            rng = np.random.default_rng(seed)
            start = int(rng.integers(0, len(content) - 600))
            return content[:start] + rng.bytes(600) + content[start + 600 :]

        yield f"600 bytes overwritten, {seed}", overwrite


@pytest.mark.parametrize("damage", [d for _, d in damage_everywhere()], ids=[n for n, _ in damage_everywhere()])
def test_a_damaged_database_is_one_message_or_was_not_touched_where_it_matters(undisturbed, tmp_path, damage):
    search(tmp_path, DISTURBED, StandIn(4))
    path = tmp_path / "run.sqlite"
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    try:
        search(tmp_path, DISTURBED, StandIn(4))
    except RunError as error:
        assert "run.sqlite" in str(error) and str(error).isprintable()
        assert path.read_bytes() == before  # nothing was written into it
    else:
        assert rows(tmp_path) == undisturbed  # unused bytes of a page


def edited(workdir, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(workdir / "run.sqlite")) as c:
        for statement in statements:
            c.execute(statement)
        c.commit()


@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_database_of_an_older_or_newer_schema_is_refused_untouched(tmp_path, version):
    search(tmp_path, plan(4), StandIn(4))
    edited(tmp_path, f"PRAGMA user_version = {version}")
    for opened in (RunDatabase.writing, RunDatabase.reading):
        with pytest.raises(RunError, match=f"schema version {version} but this bpevo reads 1"), opened(tmp_path):
            pass


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE evaluations SET curve = '{' WHERE rowid = 3",
        "UPDATE evaluations SET accuracy = 'high' WHERE rowid = 3",
        "UPDATE evaluations SET accuracy = 7 WHERE rowid = 3",
        "UPDATE evaluations SET reason = char(27) || ']0;title' || char(7) WHERE rowid = 3",
        "UPDATE evaluations SET status = CAST(x'ff00ff' AS TEXT) WHERE rowid = 3",
        "UPDATE proposals SET equation = 'g +' WHERE id = 3",
        "UPDATE proposals SET equation = '__import__(''os'').system(''touch pwned'')' WHERE id = 3",
        "UPDATE proposals SET changes = '[{\"part\": 1}]' WHERE id = 3",
        "UPDATE proposals SET bars = '7' WHERE id = 3",
        "DELETE FROM proposals WHERE id = 3",
    ],
)
def test_rows_that_make_no_sense_are_one_message_without_control_characters(tmp_path, statement):
    search(tmp_path, plan(12), StandIn(4))
    edited(tmp_path, "PRAGMA foreign_keys = OFF", statement)
    with pytest.raises(RunError) as error:
        search(tmp_path, plan(12), StandIn(4))
    assert "run.sqlite" in str(error.value) and str(error.value).isprintable()


def test_a_database_without_its_main_file_is_not_started_over(tmp_path):
    search(tmp_path, plan(4), StandIn(4))
    (tmp_path / "run.sqlite").rename(tmp_path / "run.sqlite-wal")
    with pytest.raises(RunError, match="the run lost its main file"), RunDatabase.writing(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="cannot write in the workdir"), RunDatabase.writing(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


# Clocks.


def test_a_clock_that_jumps_changes_neither_results_nor_durations(undisturbed, tmp_path, monkeypatch):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9 + next(jumps))
    made = search(tmp_path, DISTURBED, StandIn(4, seconds=0.001), workers=saving(tmp_path))
    assert rows(tmp_path) == undisturbed
    assert all(0 < e.seconds < 60 for e in made.rows)


# Devices.


class Small(StandIn):
    """A stand-in on a device with room for `room` slots: an epoch with more runs out of memory at some moment."""

    def __init__(self, capacity: int, room: int, until: int):
        super().__init__(capacity)
        self._room, self._until = room, until

    def advance(self, meanwhile=lambda: None):
        if self.capacity > self._room and self.epochs >= self._until:
            raise OutOfMemory("no room")
        return super().advance(meanwhile)

    def halved(self):
        if self.capacity == 1:
            raise OutOfMemory("not even one")
        return Small(self.capacity // 2, self._room, 0)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_running_out_of_memory_halves_the_slots_and_goes_on(undisturbed, tmp_path, checkpoints):
    said = []
    workers = saving(tmp_path, 0.0, said) if checkpoints else lambda trainer: LocalWorkers(trainer, None, said.append)
    made = search(tmp_path, DISTURBED, Small(8, room=2, until=50), workers=workers)
    assert rows(tmp_path) == undisturbed and made._workers.trainer.capacity == 2
    assert said == [f"the device ran out of memory with {a} slots: going on with {b}" for a, b in ((8, 4), (4, 2))]


def test_memory_for_not_even_one_slot_ends_with_a_message(tmp_path):
    with pytest.raises(OutOfMemory, match="not even one"):
        search(tmp_path, DISTURBED, Small(4, room=0, until=50), workers=lambda t: LocalWorkers(t, None, str))
    assert len(rows(tmp_path)["evaluations"]) > 4


def exhaust_memory() -> None:
    """Run in a process of its own: a real trainer whose program suddenly needs more memory than the process may have."""
    trainer = make_trainer(4)
    workers = LocalWorkers(trainer, None, print)
    for tag in range(8):
        workers.submit(dataclasses.replace(JOBS[tag % 2], subject=str(tag)))
    workers.poll()
    program = trainer._programs[-1]

    room = jax.jit(lambda: jnp.zeros((2**31 - 8,), jnp.float32))  # 8 GiB

    def hungry(orders, states, examples):
        jax.block_until_ready(room())
        return program(orders, states, examples)

    trainer._programs[-1] = hungry
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**32, resource.RLIM_INFINITY))
    curves = finish(workers)
    print(len(curves), workers.trainer.capacity, all(len(c) == SETTINGS.epochs for c in curves.values()))


def test_a_real_allocation_that_fails_halves_the_slots():
    process = python("import test_faults; test_faults.exhaust_memory()")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert output.splitlines() == ["the device ran out of memory with 4 slots: going on with 2", "8 2 True"]


def test_halving_stops_at_a_slot_per_device():
    trainer = make_trainer(2)
    half = trainer.halved()
    assert half.capacity == 1 and half.free == [0]
    with pytest.raises(OutOfMemory, match="not even one candidate fits"):
        half.halved()


def test_a_lost_device_ends_the_search_with_a_message_and_it_continues(tmp_path):
    def lost(_):
        raise RuntimeError("the device fell off the bus")

    def failing(orders, states, examples):
        loss = jax.pure_callback(lost, jax.ShapeDtypeStruct((), jnp.float32), orders.epoch[0])
        return states, jax.tree.map(lambda x: loss, states)

    def real(trainer, watch=lambda search, outcomes: None):
        small = plan(4, lag=4, top=1, repeats=1)
        with RunDatabase.writing(tmp_path) as database:
            database.check_settings({"max_parts": 3}, {}, ())
            proposer = PaperController(small.space, small.evolution, (), SameText())
            Search(database, proposer, LocalWorkers(trainer), small, watch).run()

    trainer = make_trainer(2)

    def fail_after_the_controls(search, outcomes):
        if len(search.rows) == 2:
            trainer._programs[-1] = jax.jit(failing)

    with pytest.raises(
        DeviceLost, match="a device failed: .*every finished training is kept, the same command continues"
    ):
        real(trainer, fail_after_the_controls)
    kept = rows(tmp_path)["evaluations"]
    assert len(kept) == 2
    real(make_trainer(2))
    assert set(kept) < set(rows(tmp_path)["evaluations"])


# Terminals.


class Gone(io.StringIO):
    """A stream that fails like one whose reader has gone."""

    def __init__(self, error: int, after: int):
        super().__init__()
        self._error, self._after = error, after

    def write(self, text):
        self._after -= 1
        if self._after < 0:
            raise OSError(self._error, os.strerror(self._error))
        return super().write(text)


@pytest.mark.parametrize("error", [5, 28, 32], ids=["EIO", "ENOSPC", "EPIPE"])
def test_a_search_outlives_its_output(undisturbed, tmp_path, error):
    from rich.console import Console

    console = Console(file=Output(Gone(error, 3)), width=80)
    progress = Progress(console)
    with progress.running():
        search(tmp_path, DISTURBED, StandIn(4), progress)
    console.print("the end")
    assert rows(tmp_path) == undisturbed


COMMAND = (
    "--dataset=digits", "--model=mlp-8-8", "--train_examples=128", "--batch_size=32", "--epochs=2", "--slots=4",
    "--top=1", "--repeats=1", "--lag=2", "--elite_size=2", "--selfcheck=false",
)  # fmt: skip


def launched(workdir, *arguments, **options) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "TF_"))}
    environment |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "bpevo.launch", f"--workdir={workdir}", *COMMAND, *arguments]
    return subprocess.Popen(command, env=environment, text=True, **options)


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def trainings(workdir) -> int:
    try:
        return stored(workdir)[1]
    except RunError:
        return 0


@pytest.mark.slow
def test_the_command_outlives_a_closed_pipe_and_ends_on_a_closed_terminal_and_on_termination(tmp_path):
    workdir = tmp_path / "run"
    with launched(
        workdir, "--max_evaluations=4", "--noequivalence", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as piped:
        piped.stdout.close()  # as `| head -1` does
        errors = piped.stderr.read()
    assert piped.returncode == 0 and not errors and trainings(workdir) >= 2 + 4

    before = trainings(workdir)
    terminal, end = os.openpty()
    with launched(
        workdir,
        "--max_evaluations=100000",
        "--noequivalence",
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
    ) as shown:
        os.close(end)
        drained = time.monotonic() + 120
        os.set_blocking(terminal, False)
        while trainings(workdir) < before + 3 and time.monotonic() < drained:
            with contextlib.suppress(BlockingIOError):
                os.read(terminal, 65536)
            time.sleep(0.02)
        os.close(terminal)
        os.kill(shown.pid, signal.SIGHUP)
        assert shown.wait(120) == 128 + signal.SIGHUP
    middle = trainings(workdir)
    assert middle >= before + 3

    with launched(
        workdir, "--max_evaluations=100000", "--noequivalence", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ended:
        wait_for(lambda: trainings(workdir) > middle)
        ended.send_signal(signal.SIGTERM)
        output, errors = ended.communicate(timeout=120)
    assert ended.returncode == 128 + signal.SIGTERM and "backprop" in output and "interrupted" in output
    assert errors.splitlines() == ["stopping after the epoch in progress; once more stops at once"]
