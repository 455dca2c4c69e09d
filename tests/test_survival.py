"""A search that is killed, stopped, reordered and moved between slots ends with the rows of the one nothing disturbed."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_runs import DISTURBED, EPOCHS, PARTS, StandIn, plan, python, rows, search
from test_training import DIVERGES, SETTINGS, make_trainer, training

from bpevo.command.process import Interruption
from bpevo.evolution import PaperController, SameText
from bpevo.report import Metrics
from bpevo.runs import RunDatabase
from bpevo.search import Search
from bpevo.training import REASONS
from bpevo.workers import Checkpoints, Job, LocalWorkers, Stage
from bpevo.workers.local import KEPT

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Rows of DISTURBED when nothing disturbs it."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    search(workdir, DISTURBED, StandIn(4))
    return rows(workdir)


def saving(workdir, minutes: float = 0.0, said: list | None = None):
    """Workers with checkpoints in the workdir, after every epoch unless told otherwise."""
    say = (said if said is not None else []).append
    return lambda trainer: LocalWorkers(
        trainer, Checkpoints(pathlib.Path(workdir) / "checkpoints", {}, minutes, say), say
    )


# Kills. The functions run in processes of their own that fork one search after the other.


def die_after(calls: int) -> None:
    """This process kills itself before that many more calls into C: between two statements, writes or renames."""
    left = [calls]

    def count(frame, event, argument):
        if event == "c_call":
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def followed(workdir):
    """A watch that writes metrics, of which an epoch's occupancy is unknown."""
    with RunDatabase.writing(workdir) as database:
        metrics = Metrics("csv", workdir, database.rows(), lambda text: False, print)
    return lambda search, rows: metrics.add(rows)


def kill_by_time_and_by_step(workdir: str, kills: int, seed: int = 1) -> None:
    """Searches until one ends, killing the first `kills` at a random time or a random step; prints how many died."""
    chosen, died = random.Random(seed), 0
    while True:
        child = os.fork()
        if not child:
            if died < kills and chosen.random() < 0.5:
                die_after(int(10 ** chosen.uniform(2, 4.4)))
            search(workdir, DISTURBED, StandIn(4, seconds=0.002), followed(workdir), workers=saving(workdir))
            os._exit(0)
        by_time = chosen.random() >= 0.5
        if died < kills and by_time:
            time.sleep(10 ** chosen.uniform(-3, -1.15))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        died += status == signal.SIGKILL
        if os.WIFEXITED(status):
            print(died, os.WEXITSTATUS(status))
            return


def killed(workdir, kills: int, seed: int) -> int:
    """Deaths survived by one search until its end."""
    code = "import sys, test_survival as t; t.kill_by_time_and_by_step(sys.argv[1], *map(int, sys.argv[2:]))"
    process = python(code, workdir, kills, seed)
    output, _ = process.communicate(timeout=3600)
    died, code = map(int, output.split())
    assert process.returncode == code == 0
    return died


def test_kills_at_random_moments_lose_repeat_and_change_nothing(undisturbed, tmp_path):
    assert killed(tmp_path, 100, 1) >= 67
    assert rows(tmp_path) == undisturbed
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 64 + 4
    metrics = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").unlink()
    followed(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == metrics and metrics.count(b"\n") > len(undisturbed["evaluations"])


REAL = plan(12, lag=4, top=1, repeats=1)


def real_search(workdir, slots: int, watch=lambda search, outcomes: None, workers=LocalWorkers, **options) -> Search:
    trainer = make_trainer(slots, dataclasses.replace(SETTINGS, epochs=6), **options)
    with RunDatabase.writing(workdir) as database:
        database.check_settings({"max_parts": PARTS}, {}, ())
        proposer = PaperController(REAL.space, REAL.evolution, REAL.initial, SameText())
        made = Search(database, proposer, workers(trainer), REAL, watch)
        made.run()
    return made


def kill_real_training(workdir: str, kills: int) -> None:
    """Searches with real training until one ends; each of the first `kills` dies shortly after some of its epochs."""
    chosen, died = random.Random(2), 0
    while True:
        reads, writes = os.pipe()
        child = os.fork()  # JAX has not started a backend in this process
        if not child:
            real_search(workdir, 4, lambda *_, writes=writes: os.write(writes, b"."), saving(workdir))
            os._exit(0)
        os.close(writes)
        if died < kills:
            for _ in range(chosen.randint(1, 2)):
                os.read(reads, 1)
            time.sleep(chosen.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(reads)
        died += status == signal.SIGKILL
        if os.WIFEXITED(status):
            print(died, os.WEXITSTATUS(status))
            return


@pytest.fixture(scope="module")
def undisturbed_training(tmp_path_factory):
    """Rows of a search with real training in one slot after the other."""
    workdir = tmp_path_factory.mktemp("real")
    real_search(workdir, 1)
    return rows(workdir)


def test_ten_kills_in_real_training_change_no_bit(undisturbed_training, tmp_path):
    process = python("import sys, test_survival as t; t.kill_real_training(sys.argv[1], 10)", tmp_path / "run")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0 and output.split() == ["10", "0"]
    assert rows(tmp_path / "run") == undisturbed_training


# Determinism.


class Shuffled(StandIn):
    """A stand-in whose slots advance at random, so that trainings end in any order."""

    def __init__(self, capacity: int, seed: int):
        super().__init__(capacity)
        self._random = random.Random(seed)

    def busy(self) -> list[int]:
        slots = [k for k in super().busy() if self._random.random() < 0.4]
        return self._random.sample(slots, len(slots))


@pytest.mark.parametrize("slots, seed", [(1, 0), (4, 1), (4, 2), (8, 3)])
def test_the_order_in_which_trainings_end_changes_nothing(undisturbed, tmp_path, slots, seed):
    search(tmp_path, DISTURBED, Shuffled(slots, seed))
    assert rows(tmp_path) == undisturbed


def test_a_search_moves_between_numbers_of_slots(undisturbed, tmp_path):
    for slots in (8, 1, 4, 2):
        with contextlib.suppress(KeyboardInterrupt):
            search(tmp_path, DISTURBED, StandIn(slots, interrupt_after=20), workers=saving(tmp_path))
    search(tmp_path, DISTURBED, StandIn(3), workers=saving(tmp_path))
    assert rows(tmp_path) == undisturbed


@pytest.mark.parametrize("slots", [4, 8])
def test_real_training_is_bit_identical_in_any_number_of_slots(undisturbed_training, tmp_path, slots):
    real_search(tmp_path, slots)
    assert rows(tmp_path) == undisturbed_training


def interrupted_search(workdir: str) -> None:
    """Run in a process of its own: stopped in the middle of trainings, then continued from their checkpoints."""
    assert len(jax.devices()) == 4
    polls = iter((0,) * 9)
    with contextlib.suppress(StopIteration):
        real_search(workdir, 4, lambda *_: next(polls), saving(workdir))
    assert list(pathlib.Path(workdir, "checkpoints").iterdir())
    real_search(workdir, 8, workers=saving(workdir))


def test_real_training_is_bit_identical_on_four_devices_with_checkpoints(undisturbed_training, tmp_path):
    code = "import sys, test_survival as t; t.interrupted_search(sys.argv[1])"
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, timeout=600)
    assert rows(tmp_path) == undisturbed_training


# Checkpoints.


@pytest.fixture(scope="module")
def trainer():
    return make_trainer(2, dataclasses.replace(SETTINGS, optimizer="momentum", epochs=5))


@pytest.fixture(scope="module")
def other_trainer():
    """The same trainings in slots of another program."""
    return make_trainer(3, dataclasses.replace(SETTINGS, optimizer="momentum", epochs=5))


JOBS = [
    Job(stage=Stage.SEARCH, subject=text, proposal=i, training=training(text))
    for i, text in enumerate(("mul_noise(bn(fa), 0.1) + whiten(g)", "unit_fro(g)"))
]


def finish(workers: LocalWorkers, polls: int = 100) -> dict:
    curves = {}
    while not workers.idle and polls:
        polls -= 1
        curves |= {outcome.job.subject: outcome.curve for outcome in workers.poll()}
    return curves


def test_a_training_continues_from_its_checkpoint_bit_for_bit(trainer, other_trainer, tmp_path):
    plain = LocalWorkers(trainer)
    for job in JOBS:
        plain.submit(job)
    expected = finish(plain)
    for polls in (1, 2, 4):
        folder, said = tmp_path / str(polls), []
        first = LocalWorkers(trainer, Checkpoints(folder, {"a": (1,)}, 0.0, said.append))
        for job in JOBS:
            first.submit(job)
        assert finish(first, polls) == {}
        first.close()
        assert len(list(folder.iterdir())) == 2
        second = LocalWorkers(other_trainer, Checkpoints(folder, {"a": (1,)}, 100.0, said.append))
        second.submit(JOBS[1])
        second.submit(JOBS[0])
        before = other_trainer.epochs_run
        assert finish(second) == expected and not said
        assert other_trainer.epochs_run - before == 2 * (5 - polls)
        second.poll()
        assert not list(folder.iterdir())  # its results are stored now


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 1] = b"?"
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def pickled(path):
    np.savez(path, header=np.array([{"an": "object"}], dtype=object))


def other_settings(path):
    with np.load(path) as arrays:
        content = dict(arrays)
    header = json.loads(content["header"].tobytes()) | {"identity": {"jax": "other"}}
    np.savez(path, **content | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})


def other_shapes(path):
    with np.load(path) as arrays:
        np.savez(path, **{k: a if k == "header" else a[..., None] for k, a in arrays.items()})


@pytest.mark.parametrize("damage", [truncate, flip, empty, pickled, other_settings, other_shapes])
def test_a_checkpoint_that_does_not_fit_is_said_so_and_the_training_starts_afresh(trainer, tmp_path, damage):
    said = []
    first = LocalWorkers(trainer, Checkpoints(tmp_path, {}, 0.0, said.append))
    first.submit(JOBS[1])
    first.poll()
    first.close()
    (path,) = tmp_path.iterdir()
    damage(path)
    second = LocalWorkers(trainer, Checkpoints(tmp_path, {}, 100.0, said.append))
    second.submit(JOBS[1])
    (curve,) = finish(second).values()
    assert [e.epoch for e in curve] == [1, 2, 3, 4, 5]
    assert len(said) == 1 and "cannot be used" in said[0] and "starts afresh" in said[0]
    assert not list(tmp_path.iterdir())


def test_only_trainings_that_last_get_checkpoints_and_a_full_run_leaves_few(tmp_path):
    made = search(tmp_path / "short", DISTURBED, StandIn(4), workers=saving(tmp_path / "short", minutes=10))
    assert 117 < made.done <= 120 and not list((tmp_path / "short" / "checkpoints").iterdir())
    search(tmp_path / "long", DISTURBED, StandIn(4), workers=saving(tmp_path / "long"))
    assert len(list((tmp_path / "long" / "checkpoints").iterdir())) <= 4


def test_checkpoints_are_bounded_and_pruned_inside_their_folder_only(tmp_path):
    precious = tmp_path / "precious.npz"
    precious.write_text("kept")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ("0" * 32 + ".npz")).symlink_to(precious)
    (folder / ("1" * 32 + ".npz.partial")).write_text("a crash left this")
    for name in ("mine.npz", "notes.txt"):
        (folder / name).write_text("kept")
    (folder / "a folder").mkdir()
    for i in range(300):
        (folder / f"{i + 2:032x}.npz").write_text("")
    checkpoints = Checkpoints(folder, {}, 0.0, print)
    assert not list(folder.glob("*.partial"))
    workers = LocalWorkers(StandIn(2), checkpoints)
    workers.submit(JOBS[0])
    workers.poll()
    assert len(list(folder.glob("[0-9a-f]*.npz"))) == 64 + 1
    checkpoints.clear()
    assert sorted(p.name for p in folder.iterdir()) == ["a folder", "mine.npz", "notes.txt"]
    assert precious.read_text() == "kept"


def test_a_checkpoint_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Checkpoints(tmp_path / "checkpoints", {}, 0.0, print)


def test_an_interrupted_search_repeats_no_epoch_that_was_saved(undisturbed, tmp_path):
    whole, cut, ended = StandIn(4), [], False
    search(tmp_path / "whole", DISTURBED, whole)
    while not ended:
        cut.append(StandIn(4, interrupt_after=20))
        with contextlib.suppress(KeyboardInterrupt):
            search(tmp_path / "cut", DISTURBED, cut[-1], workers=saving(tmp_path / "cut"))
            ended = True
    assert rows(tmp_path / "cut") == undisturbed and len(cut) > 3
    lost = len(cut) * 4 * KEPT  # states of trials of an epoch, whose trainings begin afresh
    assert whole.epochs <= sum(trainer.epochs for trainer in cut) <= whole.epochs + lost


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_epoch_is_stored_and_a_second_one_at_once(tmp_path, number):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    interruption = Interruption()
    seen = []

    class Signalled(StandIn):
        def advance(self, meanwhile=lambda: None):
            results = super().advance(meanwhile)
            if self.epochs == 4 * EPOCHS:  # the first results are in, and not yet stored
                os.kill(os.getpid(), number)
                seen.append(len(results))
            return results

    def watch(search, outcomes):
        interruption.search = search

    try:
        interruption.install()
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, plan(40, rates=(0.1, 0.2)), Signalled(4), watch)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        for n, handler in handlers.items():
            signal.signal(n, handler)
    assert interruption.code == 128 + number and seen == [4]
    assert len(rows(tmp_path)["evaluations"]) == 4  # the two controls at two learning rates: nothing was lost


def test_a_second_signal_in_the_middle_of_an_epoch_writes_no_checkpoint_of_half_an_epoch(tmp_path):
    class Torn(StandIn):
        def advance(self, meanwhile=lambda: None):
            results = super().advance(meanwhile)
            if self.epochs > 2:
                raise KeyboardInterrupt  # the slots are an epoch ahead of what the workers know
            return results

    workers = saving(tmp_path)(Torn(1))
    workers.submit(JOBS[0])
    for _ in range(2):
        workers.poll()
    saved = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        workers.poll()
    workers.suspend()
    assert len(saved) == 1 and {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()} == saved


def test_a_signal_that_is_ignored_stays_ignored():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        Interruption().install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


# Hostile equations beside others.

HOSTILE = (
    DIVERGES,
    "((1000000.0*g) * (1000000.0*gh)) * cube(gh)",
    "inv(g - g) * g",
    "(g - g) / dh",
    "inv(dh - dh) / inv(g)",
    "(unit_row_ninf(dh) * unit_col_ninf(g)) * unit_elem0(g)",
    "unit_mat_ninf(g - g) + unit_mat_inf(dh)",
    "add_noise(add_noise(g, 1.0) + mul_noise(g, 1.0), 1.0) + drop(h, 0.3)",
    "add_noise(g, 1000000.0) * cube(gh)",
    "whiten(g - g) + bn(h)",
    "ssq((g + 1000000.0) * (g + 1000000.0)) - cube(g)",
    "clip(g, 1.2e-38) * (1.2e-38*g)",
    "bn(dh) / mean(dh)",
    "left(bn(fa), g) / std(dfa)",
)


def test_hostile_equations_touch_no_neighbour():
    trainer = make_trainer(4)
    neighbours = ("unit_fro(g)", "drop(dfa, 0.1) - g", "g")
    workers = LocalWorkers(trainer)
    for i, text in enumerate(neighbours):
        workers.submit(Job(stage=Stage.SEARCH, subject=text, proposal=i, training=training(text)))
    expected = finish(workers)
    for text in HOSTILE:
        for i, neighbour in enumerate(neighbours):
            workers.submit(Job(stage=Stage.SEARCH, subject=neighbour, proposal=i, training=training(neighbour)))
        workers.submit(Job(stage=Stage.SEARCH, subject="hostile", training=training(text)))
        curves = finish(workers)
        hostile = curves.pop("hostile")
        assert curves == expected, text
        assert hostile[-1].reason in REASONS and 0 <= hostile[-1].eval_accuracy <= 1
        assert hostile[-1].reason or np.isfinite([hostile[-1].train_loss, hostile[-1].gradient_norm]).all()
