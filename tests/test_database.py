"""The run database, its lock, its driver and its versions, on rows made by hand: what is stored, refused and said."""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import sqlite3
import stat
import types

import jax
import pytest
from test_runs import PARTS, SETTINGS, epoch_result, job, outcome

from bpevo import rules
from bpevo.evolution import Networks, Proposal
from bpevo.rules import parse
from bpevo.runs import (
    Driver,
    Glance,
    Row,
    Rows,
    RunDatabase,
    RunError,
    backprop_on,
    database,
    joined,
    lock,
    printable,
    provenance,
)
from bpevo.runs.rows import row_of
from bpevo.training import usable_cpus
from bpevo.workers import Outcome, Stage

FIRST = Proposal(id=0, equation=parse("fa").to_equation(PARTS), key="key")


@contextlib.contextmanager
def run(folder: pathlib.Path, *outcomes: Outcome, versions=()):
    """One with a proposal and these outcomes, open for writing."""
    with RunDatabase.writing(folder) as made:
        made.check_settings(SETTINGS, dict(versions), ())
        made.add_proposal(FIRST)
        made.add_rows(outcomes)
        yield made


# What it tells of a run.


def test_a_glance_tells_trainings_of_proposals_the_best_rule_and_tuned_backprop(tmp_path):
    with RunDatabase.writing(tmp_path) as empty:
        assert empty.glance() == Glance() == Glance(trained=0, best=None, backprop=None)
    with run(
        tmp_path,
        outcome("fa", accuracies=(0.75, 0.5)),
        outcome("fa", accuracies=(0.75, 0.25), rate=0.2),
        outcome("fa", accuracies=(0.9,), stage=Stage.TRIAL),
        outcome("g", accuracies=(0.5,), stage=Stage.CONTROL, proposal=None),
        outcome("g", accuracies=(0.625,), stage=Stage.CONTROL, proposal=None, rate=0.2),
        outcome("g - g", accuracies=(0.875,), stage=Stage.CONTROL, proposal=None),
        outcome("g", accuracies=(0.99,), stage=Stage.SELECTION, proposal=None),
    ) as made:
        assert made.glance() == Glance(trained=3, best=0.5, backprop=0.625)


def test_the_tables_for_people_are_written_anew_with_places_from_1(tmp_path):
    first, second = ("g", "backprop", "", 0.1, 50.0, 51.0, 3, None), ("fa", "", "other", 0.2, 40.0, None, 0, -1.5)
    simple = (1, "fa", "other", None, 0.2, 40.0)
    with run(tmp_path) as made:
        made.store_tables([second, first], [(2, "g", "backprop", 0, 0.1, 50.0), simple])
        made.store_tables([first, second], [simple])
    with contextlib.closing(sqlite3.connect(tmp_path / "run.sqlite")) as c:
        assert c.execute("SELECT * FROM leaderboard ORDER BY place").fetchall() == [(1, *first), (2, *second)]
        assert c.execute("SELECT * FROM front").fetchall() == [simple]


# What it refuses.

STORED = dict(
    stage="search", equation="fa on mlp-8", learning_rate=0.1, replicate=1, proposal=0, status="done", reason="", accuracy=0.5,
    rungs=2, curve='{"eval_accuracy": [0.5]}', seconds=1, finished="2026-01-02T03:04:05+00:00",
)  # fmt: skip


@pytest.mark.parametrize("accuracy", [0, 0.5, 1, None])
def test_a_row_is_read_with_its_network_and_any_share_of_right_answers(accuracy):
    assert database._row(tuple((STORED | {"accuracy": accuracy}).values())) == Row(
        **STORED | {"equation": "fa", "network": "mlp-8", "accuracy": accuracy, "curve": {"eval_accuracy": [0.5]}}
    )


@pytest.mark.parametrize(
    "column, value",
    [
        ("stage", "search\x1b"), ("equation", "\x07"), ("status", 1), ("reason", "two\nlines"), ("replicate", "1"),
        ("rungs", 1.5), ("learning_rate", "fast"), ("seconds", None), ("accuracy", -0.001), ("accuracy", 1.001),
        ("curve", "[]"), ("curve", "{"), ("finished", "yesterday"),
    ],
)  # fmt: skip
def test_a_row_with_one_value_that_its_column_cannot_have_is_refused(column, value):
    with pytest.raises(ValueError):
        database._row(tuple((STORED | {column: value}).values()))


def test_a_damaged_row_is_told_by_its_place_and_the_first_line_of_the_reason(tmp_path):
    with run(tmp_path, outcome("fa"), outcome("fa", rate=0.2), outcome("fa", rate=0.3)) as made:
        made._connection.execute("UPDATE evaluations SET curve = '{' WHERE rowid = 2")
        with pytest.raises(
            RunError, match=r"run\.sqlite: row 2 of evaluations is damaged \(Expecting .*\); move the file"
        ):
            made.rows()

        def failing(error):
            def convert(position, row):
                raise error

            return convert

        for error in (ValueError(), TypeError(), KeyError(), AttributeError()):
            with pytest.raises(RunError, match=rf"row 1 of proposals is damaged \({type(error).__name__}\)"):
                made._read("proposals", [()], failing(error))
        with pytest.raises(RunError, match=r"row 1 of proposals is damaged \(first \\x1b\)"):
            made._read("proposals", [()], failing(ValueError("first \x1b\nsecond")))


def test_a_row_of_components_that_are_not_registered_here_is_not_called_damaged(tmp_path, monkeypatch):
    with run(tmp_path, versions={"registered": "softsign:0a1b softstep:00"}) as made:
        made._connection.execute("UPDATE proposals SET equation = 'softsign(g)'")
        with pytest.raises(RunError, match=f"^{tmp_path} uses 'softsign', 'softstep', registered in the process that"):
            made.proposals()
        monkeypatch.setattr(database, "extensions", lambda: [types.SimpleNamespace(name="softsign")])
        with pytest.raises(RunError, match=f"^{tmp_path} uses 'softstep', registered"):
            made.proposals()


def test_another_jax_or_flax_may_trace_a_network_in_another_way_and_the_same_may_not(tmp_path):
    releases = {"jax": "1", "flax": "1", "optax": "1"}
    with RunDatabase.writing(tmp_path) as made:
        made.check_settings({"model_code_crc32": 1, "seed": 0}, releases, ())
        for now in (releases, releases | {"optax": "2"}):
            with pytest.raises(RunError, match="model_code_crc32: 1 in the run, 2 now"):
                made.check_settings({"model_code_crc32": 2, "seed": 0}, now, ())
        with pytest.raises(RunError, match=r":\n  seed: 0 in the run, 1 now\n"):
            made.check_settings({"model_code_crc32": 2, "seed": 1}, releases | {"jax": "2"}, ())
        made.check_settings({"model_code_crc32": 2, "seed": 0}, releases | {"jax": "2"}, ())
        made.check_settings({"model_code_crc32": 3, "seed": 0}, releases | {"jax": "2", "flax": "2"}, ())
        assert made.settings()["model_code_crc32"] == 3


def test_a_fault_of_the_file_is_one_printable_line_and_only_a_writer_is_refused_for_it(tmp_path, monkeypatch):
    with run(tmp_path) as made:
        assert made.fault() == ""
        checked = types.SimpleNamespace(fetchone=lambda: ("*** in database main ***\nTree 5  page 2:\x1b",))
        monkeypatch.setattr(made, "_connection", types.SimpleNamespace(execute=lambda query: checked))
        assert made.fault() == r"Tree 5 page 2:\x1b"
    monkeypatch.setattr(RunDatabase, "fault", lambda self: "Tree 5")
    with RunDatabase.reading(tmp_path) as made:
        assert len(made.proposals()) == 1
    with pytest.raises(RunError, match="run.sqlite: Tree 5; the file is damaged"), RunDatabase.writing(tmp_path):
        pass


def test_what_a_killed_process_left_of_a_new_run_is_no_trouble(tmp_path):
    for name in ("run.sqlite.new", "run.sqlite.new-journal"):
        (tmp_path / name).write_text("half")
    with run(tmp_path) as made:
        assert len(made.proposals()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", "run.sqlite"]


@pytest.mark.parametrize(
    "name, remedy",
    [
        *((f"SQLITE_IOERR_{n}", "its file system cannot share memory") for n in ("SHMMAP", "SHMOPEN", "SHMLOCK", "LOCK")),
        *((name, "the disk is full or failing") for name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE")),
        *((f"SQLITE_{name}", "it cannot be opened") for name in ("READONLY_DIRECTORY", "CANTOPEN", "PERM")),
        *((name, "another program keeps it locked") for name in ("SQLITE_BUSY", "SQLITE_LOCKED")),
        ("SQLITE_CONSTRAINT_UNIQUE", "another process wrote into this run at the same time"),
        *((name, "the file is damaged") for name in ("", "SQLITE_CORRUPT", "SQLITE_NOTADB")),
        ("SQLITE_NOMEM", "nothing that was stored is lost: start again"),
    ],
)  # fmt: skip
def test_each_error_of_sqlite_has_its_remedy(name, remedy):
    error = sqlite3.OperationalError("it failed")
    if name:
        error.sqlite_errorname = name
    assert database._remedy(error).startswith(remedy)


@pytest.fixture
def refused(monkeypatch):
    """Modes in which connections were made and those closed, where only one to a file that nobody writes can read."""
    made, closed, error = [], [], [sqlite3.OperationalError]

    def connect(address: str, **options):
        assert options["uri"] and address.startswith("file:///")
        made.append(mode := address.partition("?")[2])

        def execute(query):
            raise error[0]("unable to open database file")

        return types.SimpleNamespace(execute=execute, close=lambda: closed.append(mode), mode=mode)

    monkeypatch.setattr(database.sqlite3, "connect", connect)
    return made, closed, error


def test_a_finished_run_is_read_where_nothing_can_be_written(refused, tmp_path, monkeypatch):
    made, closed, error = refused
    path, wal = tmp_path / "run.sqlite", tmp_path / "run.sqlite-wal"
    monkeypatch.setattr(database.os, "access", lambda folder, what: False)
    assert database._connect(path, False).mode == "mode=ro&immutable=1" and closed == ["mode=ro"]
    wal.touch()  # nothing is in it
    assert database._connect(path, False).mode == "mode=ro&immutable=1"
    wal.write_bytes(b"rows")
    for write, mode in ((False, "mode=ro"), (True, "mode=rw")):
        with pytest.raises(sqlite3.OperationalError):
            database._connect(path, write)
        assert made[-1] == closed[-1] == mode
    wal.unlink()
    with pytest.raises(sqlite3.OperationalError):
        database._connect(path, True)
    error[0] = sqlite3.DatabaseError
    with pytest.raises(sqlite3.DatabaseError):
        database._connect(path, False)
    assert closed[-1] == "mode=ro" and len(closed) == 6
    error[0] = sqlite3.OperationalError
    monkeypatch.setattr(database.os, "access", lambda folder, what: (folder, what) == (tmp_path, os.W_OK))
    with pytest.raises(sqlite3.OperationalError):
        database._connect(path, False)


def test_a_copy_is_one_file_in_a_folder_made_for_it_and_never_replaces_one(tmp_path):
    target = tmp_path / "some" / "copy"
    with run(tmp_path / "run", outcome("fa")) as made:
        made.copy_to(target)
        with pytest.raises(RunError, match=f"^{target / 'run.sqlite'} is there already: a copy needs a new folder"):
            made.copy_to(target)
        (target / "run.sqlite").rename(target / "run.sqlite.new")  # as one that was interrupted leaves it
        made.copy_to(target)
        assert [p.name for p in target.iterdir()] == ["run.sqlite"]
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match=f"^cannot write in the workdir {tmp_path / 'file'}: File exists"):
            made.copy_to(tmp_path / "file")
        stored = made.rows()
    with RunDatabase.reading(target) as copy:
        assert copy.rows() == stored and len(stored) == 1
    with contextlib.closing(sqlite3.connect(target / "run.sqlite")) as c:
        assert c.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_text_of_others_keeps_its_lines_and_no_other_control_character():
    assert printable("größe\n\x1b[1m\ttab") == "größe\n\\x1b[1m\\ttab"


# The lock.


def test_a_lock_says_in_one_line_who_holds_it_and_others_may_read_it(tmp_path):
    before = os.umask(0)
    try:
        with lock.locked(tmp_path / "some" / "run") as check:
            path = tmp_path / "some" / "run" / "lock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            check()
    finally:
        os.umask(before)
    path.write_text("x" * 500)  # of a longer owner
    with lock.locked(path.parent):
        said = path.read_text()
        assert said.startswith("host ") and f", pid {os.getpid()}, since 2" in said and said.count("\n") == 1
        assert "x" * 100 not in said


def test_a_lock_that_cannot_be_written_is_told_with_its_reason(tmp_path, monkeypatch):
    def full(file, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "ftruncate", full)
    with (
        pytest.raises(
            RunError, match=f"^cannot write in the workdir {tmp_path}: No space left on device; choose another"
        ),
        lock.locked(tmp_path),
    ):
        pass
    with pytest.raises(RunError, match="embedded null byte; choose another --workdir"), lock.locked(tmp_path / "a\0b"):
        pass


def test_a_lock_is_the_same_file_not_one_of_its_name_nor_a_link_to_it(tmp_path):
    path, other = tmp_path / "lock", tmp_path / "other"
    path.touch(), other.touch()
    opened = path.stat()
    assert lock.same(path, opened) and not lock.same(other, opened)
    for changed in ({"st_dev": opened.st_dev + 1}, {"st_ino": opened.st_ino + 1}):
        numbers = {"st_dev": opened.st_dev, "st_ino": opened.st_ino} | changed
        assert not lock.same(path, types.SimpleNamespace(**numbers))
    path.rename(tmp_path / "moved")
    assert not lock.same(path, opened)
    path.symlink_to(tmp_path / "moved")
    assert not lock.same(path, opened)


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_told_by_its_owner_and_one_that_cannot_be_by_its_file_system(tmp_path, number):
    (tmp_path / "lock").write_bytes(b"host a, pid 7\x1b\n")
    with open(tmp_path / "lock", "rb") as file:
        held = lock._refused(tmp_path, file.fileno(), OSError(number, ""))
        assert str(held).startswith(f"another process writes in {tmp_path}: host a, pid 7\\x1b; wait for it")
        none = lock._refused(tmp_path, file.fileno(), OSError(errno.ENOLCK, "No locks available"))
        assert str(none).startswith(f"the file system of {tmp_path} cannot lock files (No locks available)")
        (tmp_path / "lock").write_bytes(b"")
        assert "unknown; wait" in str(lock._refused(tmp_path, file.fileno(), OSError(number, "")))


# The driver.


class Hands:
    """Workers with two slots, and room for a job ahead of them; what is in a slot ends at the next poll."""

    def __init__(self):
        self.jobs = []

    wanted = property(lambda self: 2 - len(self.jobs))
    ahead = property(lambda self: 3 - len(self.jobs))
    idle = property(lambda self: not self.jobs)

    def submit(self, job) -> None:
        self.jobs.append(job)

    def poll(self, meanwhile) -> list[Outcome]:
        ending = self.jobs[:2]
        meanwhile()
        self.jobs = self.jobs[len(ending) :]
        return list(map(ended, ending))

    def suspend(self) -> list[Outcome]:
        return list(map(ended, self.jobs))


def ended(job) -> Outcome:
    return Outcome(job=job, status="done", reason="", curve=(epoch_result(1, 0.5, "", 1.0),), seconds=1.0)


def test_a_driver_stores_what_ends_and_stops_when_the_epoch_is_stored_or_at_once_when_asked_twice(tmp_path):
    jobs = [job(text) for text in ("g", "fa", "dfa", "h", "dh", "hp")]
    with run(tmp_path) as made:
        driver, told = Driver(made), []
        with pytest.raises(KeyboardInterrupt):
            driver.stop()  # nothing is trained

        def stored(rows) -> None:
            told.append([row.equation for row in rows])
            if len(told) == 1:
                driver.stop()

        with pytest.raises(KeyboardInterrupt):
            driver.drain(iter(jobs), Hands(), stored)
        assert told == [["g", "fa"], ["dfa"]]  # the third was drawn ahead, and suspended
        assert [row.equation for row in made.rows()] == ["g", "fa", "dfa"]

        again, told = Driver(made), []
        assert [j.subject for j in again.missing(iter(jobs))] == ["h", "dh", "hp"]
        again.drain(iter(jobs), Hands(), lambda rows: told.append(len(rows)))
        assert told == [2, 1] and again.rows == made.rows() and again.missing(iter(jobs)) == []
        with pytest.raises(KeyboardInterrupt):
            again.stop()  # it has ended

        last = Driver(made)

        def stop_twice(rows) -> None:
            last.stop()
            last.stop()

        with pytest.raises(KeyboardInterrupt):
            last.drain(iter([job("unit_fro(g)")]), Hands(), stop_twice)
        assert [row.equation for row in made.rows()][6:] == ["unit_fro(g)"]


def test_a_driver_waits_where_the_next_job_depends_on_what_is_to_come(tmp_path):
    with run(tmp_path) as made:
        told = []
        driver, asked = Driver(made), iter([job("g"), None, None, job("fa"), job("dfa")])
        driver.drain(asked, Hands(), lambda rows: told.append([row.equation for row in rows]))
        assert told == [["g"], ["fa", "dfa"]]


# Rows.


def test_what_is_measured_of_an_epoch_is_stored_by_column_and_the_alignment_by_unit():
    curve = tuple(
        epoch_result(i, a, "", eval_loss=loss) for i, (a, loss) in enumerate(((0.25, 2.0), (0.5, float("nan"))), 1)
    )
    curve = [
        type(e)(**vars(e) | {"alignment": {"Dense_0": c}})
        for e, c in zip(curve, ((0.5, 2.0), (-1.0, float("inf"))), strict=True)
    ]
    made = row_of(
        Outcome(job=job("fa", (), (1, 2, 3)), status="done", reason="", curve=tuple(curve), seconds=1.5), "then"
    )
    assert made.curve == {
        "train_loss": [1.5, 1.5], "train_accuracy": [0.5, 0.5], "gradient_norm": [2.0, 2.0], "eval_loss": [2.0, None],
        "eval_accuracy": [0.25, 0.5], "cosine Dense_0": [0.5, -1.0], "norm_ratio Dense_0": [2.0, None],
    }  # fmt: skip
    assert (made.epochs, made.rungs, made.accuracy, made.seconds, made.finished) == (2, 2, 0.5, 1.5, "then")


def test_a_training_that_goes_on_where_its_trial_ended_takes_the_epochs_after_it():
    def row(stage: str, equation: str, epochs: int, rate=0.1, **more) -> Row:
        return Row(**STORED | {"stage": stage, "equation": equation, "learning_rate": rate} | {
            "curve": {"eval_accuracy": [0.5] * epochs}} | more)  # fmt: skip

    rows = Rows([
        row("trial", "fa", 1), row("trial", "fa", 1, rate=0.2), row("search", "fa", 4, rate=0.2),
        row("search", "dfa", 4), row("control", "fa", 3), row("search", "fa", 4, rate=0.2, network="mlp-8"),
    ])  # fmt: skip
    assert rows.slot_epochs == 1 + 1 + 3 + 4 + 3 + 4
    together = row("search", "fa", 8, members=tuple(rows[:2]))
    assert Rows([*rows, together]).slot_epochs == rows.slot_epochs and Rows([together]).trainings == []
    assert [r.epochs for r in rows.of(stage="search", equation="fa")] == [4, 4]

    again = Rows([row("trial", "g", 1), row("search", "g", 1)])  # the trial was the whole training, which is made again
    assert again.slot_epochs == 2
    stopped = Rows([row("trial", "g", 2), row("search", "g", 2, status="stopped")])  # at the bar where the trial ended
    crashed = Rows([row("trial", "g", 2), row("search", "g", 0, status="crashed")])
    assert stopped.slot_epochs == crashed.slot_epochs == 2


def test_a_reason_is_stored_as_one_printable_line(tmp_path):
    reason = "died:\tno\xa0memory\n\x1b[31mat all"
    with run(tmp_path, dataclasses.replace(outcome("fa", "crashed", accuracies=()), reason=reason)) as made:
        assert [row.reason for row in made.rows()] == ["died: no memory \\x1b[31mat all"]


def test_trainings_on_several_networks_come_to_one_row_with_the_end_of_the_last():
    def row(network: str, accuracy: float, **more) -> Row:
        curve = {"eval_accuracy": [0.25, accuracy]}
        return Row(**STORED | {"network": network, "accuracy": accuracy, "curve": curve, "equation": "fa"} | more)

    first = row("a", 0.5, learning_rate=0.1, rungs=1, seconds=1.5)
    second = row("b", 0.75, learning_rate=0.2, rungs=2, seconds=2.0, finished="2026-01-03T00:00:00+00:00")
    on = Networks(names=("a", "b"), epochs=2, over="mean")
    both = joined([first, second], on, [0.5, 0.5])  # a mean of 50 % and leads of 0 and 25 points
    assert both == dataclasses.replace(
        second, learning_rate=0.1, accuracy=0.625, rungs=3, seconds=3.5, curve={"eval_accuracy": [0.25, 0.5, 0.25, 0.75]},
        network="", members=(first, second),
    )  # fmt: skip
    for end in (
        dataclasses.replace(second, status="stopped"),
        dataclasses.replace(second, status="diverged", accuracy=None),
    ):
        made = joined([first, end], on, [0.5, 0.5])
        assert (made.status, made.accuracy, made.rungs) == (end.status, end.accuracy, 3)


def test_backprop_that_diverges_at_every_rate_on_a_network_has_an_accuracy_of_0_there():
    def control(equation: str, network: str, accuracy, rate=0.1) -> Row:
        return Row(
            **STORED | dict(stage="control", equation=equation, network=network, accuracy=accuracy, learning_rate=rate)
        )

    rows = [
        control("g", "a", None), control("g", "a", None, 0.2), control("g", "b", 0.25), control("g", "b", 0.5, 0.2),
        control("g - g", "a", 0.75),
    ]  # fmt: skip
    assert backprop_on(rows, Networks(names=("a", "b"), epochs=1)) == [0.0, 0.5]


# Versions.


def test_what_may_change_bits_is_told_and_what_cannot_is_not():
    unknown = dict.fromkeys(("bpevo", "jax", "jaxlib", "flax", "optax", "device"), "unknown")
    unknown |= {"matmul precision": "default", "registered": "none", "rules": "interpreted", "XLA_FLAGS": "none"}
    assert provenance.numerics({}) == unknown
    then = {"jax": "1", "device": "8 x A100 x 2", "cores": "4", "python": "3.11", "registered": "a:01", "XLA_FLAGS": ""}
    now = {"jax": "2", "device": "1 x H200", "cores": "8", "python": "3.12", "registered": "", "XLA_FLAGS": "--a"}
    assert provenance.changed_numerics(then, now) == (
        "jax 1 then, 2 now; device A100 x 2 then, H200 now; registered a:01 then, none now; XLA_FLAGS none then, --a now"
    )
    assert provenance.changed_numerics(then, then | {"device": "1 x A100 x 2", "cores": "1"}) == ""
    assert provenance.registered({"registered": "a:01 b:02"}) == ["a", "b"] and provenance.registered({}) == []


def test_a_runs_versions_hold_the_machine_and_flags_but_for_the_number_of_devices(monkeypatch):
    device = jax.local_devices()[0]
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_force_host_platform_device_count=2 --xla_a=2")
    monkeypatch.setattr(provenance.jax, "local_devices", lambda: [device, device])
    monkeypatch.setattr(provenance, "kernel_of", lambda _: types.SimpleNamespace(said=""))
    monkeypatch.setattr(provenance, "extensions", lambda: [component(lambda x, c: x)])
    made = provenance.versions()
    assert made["device"] == f"2 x {device.device_kind}" and made["cores"] == str(usable_cpus())
    assert made["XLA_FLAGS"] == "--xla_a=2 --xla_b=1" and made["rules"] == "on tiles"
    assert made["matmul precision"] == "default" and made["jax"] == jax.__version__
    name, _, checksum = made["registered"].partition(":")
    assert name == "soft" and len(checksum) == 8 and int(checksum, 16) >= 0
    assert set(provenance.MACHINE) < set(made)
    monkeypatch.setattr(provenance, "kernel_of", lambda _: types.SimpleNamespace(said="interpreted"))
    assert provenance.versions()["rules"] == "interpreted"


def component(fn, spelling="soft({x})") -> rules.Unary:
    return rules.Unary("soft", spelling, "soft({x})", "soft(x)", fn=fn)


def test_a_registered_component_is_known_by_its_texts_and_its_code_also_that_inside_it():
    def checksum(*what) -> int:
        return provenance._checksum(component(*what))

    own = checksum(lambda x, c: x + 1)
    assert own == checksum(lambda x, c: x + 1)
    others = [
        checksum(lambda x, c: x + 2), checksum(lambda x, c: x - 1), checksum(lambda x, c: abs(x)), checksum(abs),
        checksum(lambda x, c: x + 1, "softer({x})"),
        checksum(lambda x, c: (lambda y: y + 1)(x)), checksum(lambda x, c: (lambda y: y + 2)(x)),
    ]  # fmt: skip
    assert len({own, *others}) == 8


def test_a_registered_function_is_known_by_what_it_was_made_with():
    def checksum(fn) -> int:
        return provenance._checksum(component(fn))

    def made(power):
        return lambda x, c: x**power

    def named(x, c, power=2):
        return x**power

    assert checksum(made(2)) == checksum(made(2)) != checksum(made(3))
    twice, thrice = functools.partial(named, power=2), functools.partial(named, power=3)
    assert checksum(twice) == checksum(functools.partial(named, power=2)) != checksum(thrice)
    before = checksum(named)
    named.__defaults__ = (3,)
    assert checksum(named) != before and checksum(made(made)) == checksum(made(made))
    assert checksum(made(object())) == checksum(made(object()))  # an address tells nothing
