"""Workers by hand: this process's slots, checkpoints, several networks as one, a worker's process, and what is suspected."""

import contextlib
import dataclasses
import multiprocessing
import os
import threading
import types
from multiprocessing.connection import Connection

import jax.numpy as jnp
import numpy as np
import pytest
from test_runs import EPOCHS, StandIn, chance, drain, epoch_result, job

from bpevo.bench import simulated
from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers import Checkpoints, Job, LocalWorkers, Outcome, Stage, WorkersByNetwork, checkpoints, local, process
from bpevo.workers.checkpoints import Checkpoint
from bpevo.workers.fleet import Cause, Lost, Ready, differences
from bpevo.workers.process import LoneProcess, WorkerProcess, ended
from bpevo.workers.suspects import Suspects


def seeded(number: int, **changes) -> Job:
    """A job of its own: the same rule on another seed."""
    one = job("g")
    return dataclasses.replace(one, training=dataclasses.replace(one.training, replicate=number), **changes)


# Slots of this process.


def test_the_counts_of_slots_tell_what_runs_and_what_waits():
    workers = LocalWorkers(StandIn(5))

    def counts() -> tuple:
        return workers.capacity, workers.wanted, workers.ahead, workers.idle

    assert counts() == (5, 5, 5, True) and workers.occupancy == 0.5
    for text in ("g", "fa", "dfa"):
        workers.submit(job(text))
    assert counts() == (5, 2, 2, False)
    assert workers.poll() == [] and counts() == (5, 2, 5, False)
    for text in ("h", "dh", "hp", "g - g"):
        workers.submit(job(text))
    assert counts() == (5, 0, 1, False)


def test_a_slot_whose_job_ends_at_its_start_takes_the_next_in_the_same_poll():
    trainer = StandIn(1)
    workers = LocalWorkers(trainer)
    for text in ("g", "fa"):
        workers.submit(dataclasses.replace(job(text), stage=Stage.TRIAL, epochs=1))
    assert len(drain(workers)) == trainer.epochs == 2
    for text, bars in (("g", ((1, 1.0),)), ("fa", ((1, 1.0),)), ("h", ())):
        workers.submit(job(text, bars))
    outcomes = workers.poll()
    assert [(o.job.subject, o.status, len(o.curve)) for o in outcomes] == [("g", "stopped", 1), ("fa", "stopped", 1)]
    assert trainer.epochs == 3 and not workers.idle and workers.wanted == 0  # the third one runs


def test_four_states_a_slot_are_kept_of_trainings_that_may_go_on_and_the_oldest_gives_way():
    trainer = StandIn(2)
    workers = LocalWorkers(trainer)
    for number in range(9):
        workers.submit(seeded(number, stage=Stage.TRIAL, epochs=1))
        drain(workers)
    assert trainer.epochs == 9
    paid = []
    for number in range(9):  # each ends after its first epoch: at once where that is kept
        workers.submit(seeded(number, bars=((1, 1.0),)))
        (ended,) = drain(workers)
        paid.append(trainer.epochs - 9)
        assert ended.status == "stopped"
    assert paid == [1] * 9  # the first one's was lost


def test_an_outcome_has_the_reason_of_its_last_epoch():
    workers = LocalWorkers(StandIn(1))
    workers.submit(seeded(next(n for n in range(100) if chance("diverges", "g", 0.1, n) < 0.125)))
    (diverged,) = drain(workers)
    assert (diverged.status, diverged.reason, len(diverged.curve)) == ("diverged", "loss not finite", 2)


@pytest.fixture
def clock(monkeypatch):
    """Seconds as the slots see them."""
    made = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(local, "time", types.SimpleNamespace(monotonic=lambda: made.now))
    return made


class Slow(StandIn):
    """Ten seconds an epoch."""

    def __init__(self, capacity, clock):
        super().__init__(capacity)
        self._clock = clock

    def advance(self, meanwhile=lambda: None):
        self._clock.now += 10.0
        return super().advance(meanwhile)


class Noted:
    """Checkpoints that are only noted."""

    def __init__(self, seconds: float):
        self.seconds, self.calls = seconds, []

    def load(self, job, shapes):
        assert shapes == StandIn.state_shapes

    def save(self, job, checkpoint):
        self.calls.append((len(checkpoint.curve), checkpoint.seconds))

    def discard(self, job):
        self.calls.append(job.subject)


def test_a_trainings_seconds_are_those_of_its_epochs_also_of_those_before_a_pause(clock):
    workers = LocalWorkers(Slow(1, clock))
    workers.submit(dataclasses.replace(job("g"), stage=Stage.TRIAL, epochs=1))
    (trial,) = drain(workers)
    clock.now += 500.0
    workers.submit(job("g"))
    (whole,) = drain(workers)
    assert (trial.seconds, whole.seconds, len(whole.curve)) == (10.0, 40.0, EPOCHS)


def test_a_checkpoint_is_written_when_the_last_one_is_old_enough_and_goes_once_the_result_is_stored(clock):
    noted = Noted(seconds=20.0)
    workers = LocalWorkers(Slow(1, clock), noted)
    workers.submit(job("g"))
    calls = []
    for _ in range(EPOCHS):
        outcomes = workers.poll()
        calls.append(list(noted.calls))
    assert calls == [[], [(2, 20.0)], [(2, 20.0)], [(2, 20.0)]] and len(outcomes) == 1
    workers.poll()
    assert noted.calls == [(2, 20.0), "g"]
    workers.poll()
    assert noted.calls == [(2, 20.0), "g"]


def test_workers_that_are_suspended_save_what_runs_however_new_its_checkpoint(clock):
    noted = Noted(seconds=1000.0)
    workers = LocalWorkers(Slow(1, clock), noted)
    workers.submit(job("g"))
    workers.poll()
    assert workers.suspend() == workers.suspend() == [] and noted.calls == [(1, 10.0), (1, 10.0)]
    with pytest.raises(ZeroDivisionError):
        workers.poll(lambda: 1 / 0)
    assert workers.suspend() == [] and len(noted.calls) == 2  # the slots may be an epoch ahead
    without = LocalWorkers(StandIn(1))
    without.submit(job("g"))
    without.poll()
    assert without.suspend() == []


def test_jobs_of_slots_that_do_not_fit_begin_again_in_their_order_before_those_that_wait():
    begun = []

    class Noting(StandIn):
        def start(self, slot, training, epoch=0, state=()):
            begun.append((self.capacity, slot, training.replicate))
            super().start(slot, training, epoch, state)

    class Short(Noting):
        def advance(self, meanwhile=lambda: None):
            raise OutOfMemory("no room")

        def halved(self):
            return Noting(2)

    said = []
    workers = LocalWorkers(Short(4), None, said.append)
    for number in range(6):
        workers.submit(seeded(number))
    assert workers.poll() == [] and workers.capacity == 2 and workers.ahead == 2 - 6
    assert begun == [(4, slot, slot) for slot in range(4)]
    del begun[:]
    assert workers.poll() == [] and begun == [(2, 0, 0), (2, 1, 1)]
    assert sorted(o.job.training.replicate for o in drain(workers)) == list(range(6))
    assert [number for _, _, number in begun] == list(range(6))
    assert said == ["the device ran out of memory with 4 slots: going on with 2"]


@pytest.mark.parametrize(
    "status, epochs, rungs, accuracy",
    [
        ("done", 4, 2, 0.4),
        ("stopped", 3, 1, 0.3),
        ("diverged", 2, 1, None),
        ("crashed", 0, 0, None),
        ("done", 1, 1, 0.1),
    ],
)
def test_an_outcome_tells_its_last_accuracy_and_the_rungs_survived(status, epochs, rungs, accuracy):
    curve = tuple(epoch_result(n, n / 10, "", 1.0) for n in range(1, epochs + 1))
    one = Outcome(job=job("g", (), (1, 3)), status=status, reason="", curve=curve, seconds=1.0)
    assert (one.rungs, one.accuracy) == (rungs, accuracy)
    assert one.job.identity == ("search", "g", 0.1, 0)


# Checkpoints.

SHAPES = [((2,), "float64"), ((), "int32"), ((1, 1), "bool")]
STATE = [np.array([1.5, -2.0]), np.array(7, np.int32), np.array([[True]])]


def reached(*epochs: int) -> Checkpoint:
    return Checkpoint([epoch_result(n, n / 8, "", 1.0) for n in epochs], 12.5, STATE)


def test_a_checkpoint_comes_back_as_it_was_saved_and_only_for_its_own_job(tmp_path):
    said, before = [], os.umask(0)
    try:
        kept = Checkpoints(tmp_path, {"jax": ("1",)}, 2.0, said.append)
        kept.save(job("g"), reached(1, 2))
    finally:
        os.umask(before)
    assert kept.seconds == 120.0
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644 and len(path.name) == len("0" * 32 + ".npz")
    for other in (job("fa"), job("g", ((1, 0.5),)), job("g", (), (1,)), seeded(1), seeded(0, epochs=2)):
        assert kept.load(other, SHAPES) is None
    found = Checkpoints(tmp_path, {"jax": ["1"]}, 2.0, said.append).load(job("g"), SHAPES)
    assert (found.curve, found.seconds) == (reached(1, 2).curve, 12.5) and not said
    assert [(a.dtype, a.tolist()) for a in found.state] == [("float64", [1.5, -2.0]), ("int32", 7), ("bool", [[True]])]
    kept.discard(job("g"))
    assert not list(tmp_path.iterdir())


def test_a_state_in_bfloat16_comes_back(tmp_path):
    state = [np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16)), np.float32([3.0])]
    kept = Checkpoints(tmp_path, {}, 0.0, print)
    kept.save(job("g"), reached(1, 2)._replace(state=state))
    found = kept.load(job("g"), [((2,), "bfloat16"), ((1,), "float32")])
    assert [(str(a.dtype), a.tolist()) for a in found.state] == [("bfloat16", [1.5, -2.0]), ("float32", [3.0])]


@pytest.mark.parametrize(
    "identity, epochs, shapes, reason",
    [
        ({"jax": "2"}, (1, 2), SHAPES, "it was made by other settings or versions"),
        ({}, (1, 2), SHAPES[:1], "its arrays are of another network"),
        ({}, (1, 2), [((2,), "float32"), *SHAPES[1:]], "its arrays are of another network"),
        ({}, (1, 2), [((1, 2), "float64"), *SHAPES[1:]], "its arrays are of another network"),
        ({}, (1, 3), SHAPES, "its curve has gaps"),
        ({}, (2, 3), SHAPES, "its curve has gaps"),
        ({}, (), SHAPES, "its curve has gaps"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_says_why_and_goes(tmp_path, identity, epochs, shapes, reason):
    said = []
    Checkpoints(tmp_path, {}, 0.0, said.append).save(job("g"), reached(*epochs))
    (path,) = tmp_path.iterdir()
    assert Checkpoints(tmp_path, identity, 0.0, said.append).load(job("g"), shapes) is None
    assert said == [f"the checkpoint {path.name} cannot be used ({reason}): its training starts afresh"]
    assert not path.exists()


@pytest.mark.parametrize(
    "error, reason", [(ValueError("one line\nand another"), "one line"), (MemoryError(), "MemoryError")]
)
def test_of_an_unreadable_checkpoint_one_line_is_said(tmp_path, monkeypatch, error, reason):
    def failing(*arguments, **options):
        raise error

    said, kept = [], Checkpoints(tmp_path, {}, 0.0, lambda line: said.append(line))
    kept.save(job("g"), reached(1))
    monkeypatch.setattr(checkpoints.np, "load", failing)
    assert kept.load(job("g"), SHAPES) is None
    assert len(said) == 1 and said[0].endswith(f"cannot be used ({reason}): its training starts afresh")


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    said, kept = [], Checkpoints(tmp_path / "checkpoints", {}, 0.0, lambda line: said.append(line))
    kept.save(job("g"), reached(1))
    (path,) = (tmp_path / "checkpoints").iterdir()
    np.savez(path, header=np.array([Runs()], object))
    assert kept.load(job("g"), SHAPES) is None and len(said) == 1 and not (tmp_path / "made").exists()


def test_no_link_in_the_folder_is_read_or_written_through(tmp_path):
    said, folder, elsewhere = [], tmp_path / "checkpoints", tmp_path / "elsewhere"
    kept = Checkpoints(folder, {}, 0.0, said.append)
    kept.save(job("g"), reached(1))
    (path,) = folder.iterdir()
    path.rename(elsewhere)
    whole = elsewhere.read_bytes()
    path.symlink_to(elsewhere)
    assert kept.load(job("g"), SHAPES) is None and not said
    partial = folder / f"{path.name}.partial"
    partial.symlink_to(elsewhere)
    kept.save(job("g"), reached(1, 2))
    assert said == ["no checkpoint could be written (Too many levels of symbolic links); the training goes on"]
    assert elsewhere.read_bytes() == whole and path.is_symlink() and not partial.is_symlink()
    kept.save(job("g"), reached(1, 2))  # takes the link's place
    assert len(said) == 1 and not path.is_symlink() and elsewhere.read_bytes() == whole
    assert len(kept.load(job("g"), SHAPES).curve) == 2


def test_what_a_crash_left_half_written_goes_at_the_start_and_all_checkpoints_at_the_end_of_a_run(tmp_path):
    whole, half = tmp_path / f"{1:032x}.npz", tmp_path / f"{2:032x}.npz.partial"
    others = [tmp_path / name for name in ("mine.npz", f"{3:032x}.npz.old", f"{4:033x}.npz")]
    for path in (whole, half, *others):
        path.write_text("")
    kept = Checkpoints(tmp_path, {}, 0.0, print)
    assert whole.exists() and not half.exists()
    kept.save(job("g"), reached(1))
    kept.clear()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_of_checkpoints_left_behind_the_64_newest_stay(tmp_path):
    left = [tmp_path / f"{number:032x}.npz" for number in range(66)]
    for age, path in enumerate(left[1:]):
        path.write_text("")
        os.utime(path, ns=(0, 10**9 * (66 - age)))  # the last names are the oldest
    left[0].symlink_to(tmp_path / "nowhere")
    said = []
    kept = Checkpoints(tmp_path, {}, 0.0, said.append)
    kept.save(job("g"), reached(1))
    assert [path for path in left if not path.is_symlink() and not path.exists()] == left[64:]
    kept.save(job("fa"), reached(1))
    kept.save(job("fa"), reached(1, 2))
    assert len(list(tmp_path.iterdir())) == 64 + 2 and left[63].exists() and not said


# Several networks.


class Fixed:
    """Workers of which everything is known."""

    def __init__(self, name: str, **known):
        self.name, self.calls = name, []
        self.__dict__ |= known

    def submit(self, job):
        self.calls.append(job.subject)

    def poll(self, meanwhile):
        meanwhile()
        return [f"{self.name} polled"]

    def suspend(self):
        return [f"{self.name} suspended"]

    def close(self):
        self.calls.append("closed")


def test_workers_of_several_networks_are_counted_together():
    a = Fixed("a", capacity=4, occupancy=0.5, wanted=1, ahead=3, idle=True)
    b = Fixed("b", capacity=1, occupancy=1.0, wanted=2, ahead=1, idle=False)
    both = WorkersByNetwork({"a": a, "b": b})
    assert (both.capacity, both.occupancy, both.wanted, both.ahead, both.idle) == (5, 0.6, 3, 4, False)
    b.ahead = 0  # as many wait for it as it has slots
    assert (both.wanted, both.ahead) == (0, 0)
    b.idle = True
    assert both.idle
    both.submit(dataclasses.replace(job("g"), network="b"))
    both.submit(dataclasses.replace(job("fa"), network="a"))
    called = []
    assert both.poll(lambda: called.append(1)) == ["a polled", "b polled"] and called == [1, 1]
    assert both.suspend() == ["a suspended", "b suspended"]
    both.close()
    assert (a.calls, b.calls) == (["fa", "closed"], ["g", "closed"])


# A worker's process.

VERSIONS = {"jax": "1"}


@dataclasses.dataclass
class Slots:
    """A recipe of stand-ins, by network."""

    slots: int | None
    names: tuple[str, ...] = ("",)

    def trainers(self):
        return {name: simulated.StandIn(self.slots, EPOCHS) for name in self.names}


def failing(error: Exception):
    def fails():
        raise error

    return fails


def test_a_process_begins_once_and_makes_slots_anew_by_each_recipe():
    begun = []
    worker = WorkerProcess(lambda: begun.append(1) or VERSIONS)
    assert worker.prepare(Slots(2, ("a", "b"))) == Ready(capacity=4, versions=VERSIONS)
    assert worker.prepare(Slots(3)) == Ready(capacity=3, versions=VERSIONS) and begun == [1]


@pytest.mark.parametrize("error, reason", [(ValueError(" no GPU\nat all"), "no GPU"), (OSError(), "OSError")])
def test_a_process_that_cannot_begin_answers_why(error, reason):
    assert WorkerProcess(failing(error)).prepare(Slots(1)) == Lost(reason=reason, cause=Cause.UNKNOWN)


def test_a_process_reports_the_epochs_of_all_its_networks_and_says_each_line_once():
    worker = WorkerProcess(lambda: VERSIONS)
    worker.prepare(Slots(2, ("a", "b")))
    jobs = [seeded(number, network=name) for number, name in enumerate("aab")]
    first = worker.epoch(jobs)
    assert (first.outcomes, first.capacity, first.epochs_run, first.epochs_offered, first.said) == ([], 4, 3, 4, ())
    worker._of["a"].trainer.short_of_memory = True
    second = worker.epoch([])
    assert second.said == ("the device ran out of memory with 2 slots: going on with 1",)
    assert (second.capacity, second.epochs_run, second.epochs_offered) == (3, 4, 6)  # the other network's went on
    third = worker.epoch([])
    assert (third.said, third.epochs_run, third.epochs_offered) == ((), 6, 9)
    worker.close()
    assert worker.prepare(Slots(1)).capacity == 1


@pytest.mark.parametrize("error", [DeviceLost("the device\nis gone"), OutOfMemory("the device\nis too small")])
def test_a_process_whose_device_fails_answers_why(error, monkeypatch):
    worker = WorkerProcess(lambda: VERSIONS)
    worker.prepare(Slots(1))
    for name in ("advance", "halved"):
        monkeypatch.setattr(worker._of[""].trainer, name, lambda *_: failing(error)())
    assert worker.epoch([seeded(0)]) == Lost(reason="the device", cause=Cause.UNKNOWN)


class Child:
    """A child process that is a thread of this one; its exit code is made up."""

    def __init__(self, target, args, daemon):
        connection, *others = args
        own = Connection(os.dup(connection.fileno()))
        self.daemon, self.exitcode, self.killed = daemon, None, False

        def run():
            with own, contextlib.suppress(SystemExit):
                target(own, *others)

        self._thread = threading.Thread(target=run, daemon=True)
        self.start = self._thread.start

    def join(self):
        if not self.killed:
            self._thread.join()

    def kill(self):
        self.killed = True


@pytest.fixture
def children(monkeypatch):
    made = []

    def child(**given):
        made.append(Child(**given))
        return made[-1]

    contexts = {"spawn": types.SimpleNamespace(Pipe=multiprocessing.Pipe, Process=child)}
    monkeypatch.setattr(process, "multiprocessing", types.SimpleNamespace(get_context=contexts.get))
    return made


def test_a_lone_process_trains_in_one_slot_of_a_child_that_ends_with_it(children):
    lone = LoneProcess(lambda: VERSIONS)
    assert children[0].daemon is True
    assert lone.prepare(Slots(7)) == Ready(capacity=1, versions=VERSIONS)
    report = lone.epoch([seeded(0)])
    assert (report.capacity, report.epochs_run, report.epochs_offered) == (1, 1, 1)
    lone.close()
    assert children[0].killed


@pytest.mark.parametrize(
    "code, reason, cause",
    [
        (3, "its process ended with exit code 3", Cause.ITSELF),
        (0, "its process ended with exit code 0", Cause.ITSELF),
        (None, "its process ended with exit code 0", Cause.ITSELF),
        (-9, "its process was ended by SIGKILL", Cause.UNKNOWN),
        (-6, "its process crashed: SIGABRT", Cause.ITSELF),
    ],
)
def test_the_death_of_a_lone_process_is_its_answer_also_when_it_is_asked_again(children, code, reason, cause):
    lone = LoneProcess(failing(SystemExit()))
    children[0].exitcode = code
    assert lone.prepare(Slots(1)) == lone.epoch([]) == Lost(reason=reason, cause=cause)


@pytest.mark.parametrize("number", [1, 2, 3, 15])  # SIGHUP, SIGINT, SIGQUIT, SIGTERM
def test_a_process_that_somebody_ended_did_not_crash(number):
    assert ended(-number).cause == Cause.UNKNOWN and "was ended by SIG" in ended(-number).reason


def test_versions_that_differ_are_named_with_both_and_others_are_not():
    expected = {"jax": "1", "rules": "", "device": "cpu"}
    assert differences(expected, expected) == differences({}, expected) == ""
    assert differences(expected, {"jax": "2", "rules": "", "device": "cpu", "more": "3"}) == "jax is 2, not 1"
    assert differences(expected, {"rules": "tiles", "device": "cpu"}) == "rules is tiles, not none; jax is none, not 1"


# Suspects.


def test_a_job_trains_alone_after_two_losses_that_may_be_its_own():
    suspects, one, other = Suspects(), seeded(1), seeded(2)
    assert not any(suspects.lost(one, Cause.OUTSIDE) for _ in range(5))
    assert not suspects.lost(one, Cause.UNKNOWN) and not suspects.lost(other, Cause.UNKNOWN)
    assert suspects.lost(one, Cause.ITSELF) and suspects.lost(one, Cause.OUTSIDE)
    suspects.ended(one)
    assert not suspects.lost(one, Cause.UNKNOWN) and suspects.lost(other, Cause.UNKNOWN)


def test_a_job_alone_has_crashed_when_it_brought_workers_down_on_two_nodes():
    suspects, both = Suspects(), {"a", "b"}
    suspects.alone.extend([seeded(1), seeded(2)])
    assert suspects.without(both) == set()
    assert not suspects.crashed("a", Cause.ITSELF, both) and suspects.without(both) == {"a"}
    assert not suspects.crashed("a", Cause.ITSELF, both)  # twice there is no more than a node that is to blame
    assert not suspects.crashed("b", Cause.UNKNOWN, both) and not suspects.crashed("b", Cause.OUTSIDE, both)
    assert suspects.without({"a"}) == set()
    assert suspects.crashed("b", Cause.ITSELF, both)
    suspects.ended(suspects.alone[1])
    assert [one.training.replicate for one in suspects.alone] == [1, 2]  # only the first one trains
    suspects.ended(suspects.alone[0])
    assert [one.training.replicate for one in suspects.alone] == [2] and suspects.without(both) == set()
    suspects.ended(suspects.alone[0])
    assert suspects.without(both) == set()


def test_two_crashes_on_one_node_do_where_no_other_has_room():
    for confined in (False, True):
        suspects = Suspects()
        suspects.alone.extend([seeded(1), seeded(2)])
        nodes = {"a", "b"} if confined else {"a"}
        assert not suspects.crashed("a", Cause.ITSELF, nodes)
        if confined:
            suspects.confine()
            assert suspects.without(nodes) == set()
        assert suspects.crashed("a", Cause.ITSELF, nodes)
        suspects.ended(suspects.alone[0])
        suspects.alone.appendleft(seeded(1))  # nothing is known of it any more
        assert not suspects.crashed("a", Cause.ITSELF, {"a", "b"}) and suspects.without({"a", "b"}) == {"a"}


def test_ten_silent_losses_of_a_job_alone_count_as_a_crash():
    suspects, one = Suspects(), seeded(1)
    suspects.lost(one, Cause.UNKNOWN), suspects.lost(one, Cause.UNKNOWN)
    suspects.alone.append(one)
    judged = []
    for _ in range(10):
        suspects.lost(one, Cause.UNKNOWN)
        judged.append(suspects.crashed("a", Cause.UNKNOWN, {"a", "b"}))
    assert judged == [False] * 9 + [True]
