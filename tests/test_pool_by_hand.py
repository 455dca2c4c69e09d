"""The pool by hand, over a fleet that does nothing by itself: what it asks for, counts, says and gives up, and when."""

import pytest
from test_pool import job

from bpevo.workers import Outcome, Pool, PoolError
from bpevo.workers.fleet import Cause, Lost, Place, Prepare, Ready, Report


class Told:
    """What it was told, and the answers that a test gives; a wait takes its time."""

    def __init__(self, **rooms: int):
        self.rooms, self.time, self.looks = rooms, 0.0, []
        self.starts: list[tuple[bool, set]] = []
        self.calls: dict[int, tuple] = {}  # the last one of each worker
        self.killed: list[int] = []
        self.closed = False
        self._answers: list[tuple] = []

    def now(self) -> float:
        return self.time

    def nodes(self):
        self.looks.append(self.time)
        return dict(self.rooms)

    def start(self, *, alone, without):
        self.starts.append((alone, set(without)))
        self.calls[len(self.starts) - 1] = 0, None
        return len(self.starts) - 1

    def call(self, worker, number, request):
        self.calls[worker] = number, request

    def wait(self, seconds):
        if not self._answers:
            self.time += seconds
        answers, self._answers = self._answers, []
        return answers

    def kill(self, worker):
        self.killed.append(worker)

    def close(self):
        self.closed = True

    def answer(self, worker: int, answer) -> None:
        self._answers.append((worker, self.calls[worker][0], answer))

    def jobs(self, worker: int) -> list[str]:
        """Of its last call, the new ones."""
        return [job.subject for job in self.calls[worker][1].jobs]


class Handled:
    """A pool, on such a fleet, and what it said."""

    def __init__(self, workers: int | None = None, **rooms: int):
        self.fleet, self.said = Told(**rooms), []
        self.pool = Pool(self.fleet, "recipe", workers, say=self.said.append, clock=self.fleet.now)

    def poll(self, **answers) -> list:
        """Polls once, with the answer of a worker: w0=Place(…)."""
        for worker, answer in answers.items():
            self.fleet.answer(int(worker[1:]), answer)
        return self.pool.poll()

    def until(self, time: float) -> None:
        while self.fleet.time < time:
            self.pool.poll()

    def placed(self, worker: int, node: str) -> None:
        self.poll(**{f"w{worker}": Place(node=node, name=f"{node}/{worker}")})

    def ready(self, worker: int, node: str, capacity: int) -> None:
        self.placed(worker, node)
        self.poll(**{f"w{worker}": Ready(capacity=capacity, versions=VERSIONS)})

    def submit(self, *numbers: int) -> None:
        for number in numbers:
            self.pool.submit(job(number))


def report(*ended: int, capacity: int = 4, epochs: tuple[int, int] = (0, 0), said: tuple[str, ...] = ()) -> Report:
    outcomes = [Outcome(job=job(n), status="done", reason="", curve=(), seconds=1.0) for n in ended]
    return Report(outcomes=outcomes, capacity=capacity, epochs_run=epochs[0], epochs_offered=epochs[1], said=said)


VERSIONS = {"jax": "1"}
DIED, GONE = Lost(reason="died"), Lost(reason="gone", cause=Cause.OUTSIDE)


def test_a_pool_asks_for_as_many_workers_as_there_is_room_for_or_for_fewer_and_at_least_one():
    for workers, rooms, starts in ((None, {"a": 2, "b": 1}, 3), (2, {"a": 2, "b": 1}, 2), (2, {}, 2), (None, {}, 1)):
        hand = Handled(workers, **rooms)
        assert hand.poll() == [] and hand.fleet.starts == [(False, set())] * starts
        hand.until(20.0)  # however long there is no room
        assert len(hand.fleet.starts) == starts and hand.fleet.looks == [0.0, 5.0, 10.0, 15.0]
    hand.pool.close()
    assert hand.fleet.closed and hand.fleet.killed == [0] and hand.pool.idle


def test_a_pool_counts_its_slots_and_spreads_what_there_is():
    hand = Handled(a=2)
    pool, fleet = hand.pool, hand.fleet

    def counts() -> tuple:
        return pool.capacity, pool.wanted, pool.ahead, pool.idle, pool.occupancy

    hand.submit(0)
    assert counts() == (0, 0, -1, False, 0.0)
    hand.poll()
    hand.ready(0, "a", 4)
    assert counts() == (4, 3, 4, False, 0.0) and fleet.jobs(0) == ["0"]
    hand.submit(1, 2, 3, 4, 5)
    assert counts() == (4, 0, -1, False, 0.0)
    hand.placed(1, "a")
    assert fleet.calls[1][1] is None  # until the first one's program is compiled
    assert [o.job.subject for o in hand.poll(w0=report(0, epochs=(1, 4)))] == ["0"]
    assert fleet.jobs(0) == ["1", "2", "3", "4"] and isinstance(fleet.calls[1][1], Prepare)
    assert counts() == (4, 0, 3, False, 1 / 4)
    hand.poll(w1=Ready(capacity=4, versions=VERSIONS))
    assert fleet.jobs(1) == ["5"] and counts() == (8, 3, 8, False, 1 / 4)
    hand.submit(6, 7)
    hand.poll(w0=report(1, 2, 3, epochs=(5, 8)))  # of 4 jobs over two workers each has 2
    assert fleet.jobs(0) == ["6"] and counts() == (8, 4, 7, False, 5 / 8)
    hand.poll(w1=report(5, epochs=(1, 1)))
    assert fleet.jobs(1) == ["7"] and counts() == (8, 5, 8, False, 6 / 9)
    hand.poll(w0=report(4, 6, epochs=(7, 12)), w1=report(7, epochs=(2, 2)))
    assert counts() == (8, 8, 8, True, 9 / 14)
    assert [line for line in hand.said if "slot" in line] == ["worker a/0: 4 slots", "worker a/1: 4 slots"]
    assert pool.versions == VERSIONS
    pool.use("another")
    pool.poll()
    assert counts() == (4, 4, 4, True, 9 / 14)  # one worker makes its slots anew, the other waits for its program


def test_a_pool_of_one_slot_is_occupied_by_its_only_epoch():
    hand = Handled(a=1)
    hand.submit(0)
    hand.poll()
    hand.ready(0, "a", 1)
    assert hand.said == ["worker a/0: 1 slot"]
    hand.poll(w0=report(0, capacity=1, epochs=(1, 1), said=("a line", "another")))
    assert hand.pool.occupancy == 1.0 and hand.said[1:] == ["a/0: a line", "a/0: another"]


def test_jobs_of_a_lost_worker_begin_again_in_their_order_before_those_that_wait():
    hand = Handled(a=2)
    hand.poll()
    hand.ready(0, "a", 2)
    hand.submit(0, 1, 2)
    hand.poll()
    assert hand.fleet.jobs(0) == ["0", "1"]
    hand.poll(w1=GONE)
    hand.poll(w0=DIED)
    assert hand.said[1:] == [
        "lost the worker that had no place yet (gone)",
        "lost the worker a/0 (died): 2 trainings begin again",
    ]
    assert hand.pool.capacity == 0 and hand.pool.wanted == 0 and hand.pool.ahead == -3 and hand.fleet.killed == [1, 0]
    hand.poll()
    hand.ready(3, "a", 3)
    assert hand.fleet.jobs(3) == ["0", "1", "2"]


def test_three_failed_starts_in_a_row_leave_a_node_out():
    node = "n" * 20
    hand = Handled(**{node: 1, "b": 1})
    hand.poll()
    hand.placed(1, "b")  # while it prepares, there is hope
    hand.submit(0)
    latest = 0
    for answers in ([DIED], [GONE], [DIED], [Ready(capacity=4, versions=VERSIONS), GONE], [DIED], [DIED], [DIED]):
        hand.placed(latest, node)
        assert not any("no more workers" in line for line in hand.said)
        for answer in answers:
            hand.poll(**{f"w{latest}": answer})
        hand.until(hand.fleet.time + 6.0)
        latest = len(hand.fleet.starts) - 1
    assert [line for line in hand.said if "no more" in line] == [
        f"no more workers on {'n' * 12}, where 3 could not start: died"
    ]
    assert hand.fleet.starts == [(False, set())] * 8  # two, and six in place of those that went; the last one of none
    hand.poll(w1=DIED)
    hand.poll()
    assert hand.fleet.starts[8:] == [(False, {node})]
    hand.placed(8, node)  # nevertheless
    assert hand.fleet.killed[-1] == 8


def test_three_workers_that_fail_before_they_have_a_place_end_the_run():
    hand = Handled(a=1)
    hand.poll()
    hand.poll(w0=DIED)
    hand.poll()
    hand.poll(w1=DIED)
    hand.poll()
    with pytest.raises(PoolError, match=r"^3 workers failed before they began: no room$"):
        hand.poll(w2=Lost(reason="no room"))


def test_failures_without_a_place_count_in_a_row():
    hand = Handled(a=1)
    hand.poll()
    hand.poll(w0=DIED)
    hand.poll()
    hand.poll(w1=DIED)
    hand.poll()
    hand.ready(2, "a", 4)
    hand.submit(0)
    hand.poll()
    hand.poll(w2=GONE)  # after its start
    for latest in (3, 4):
        hand.until(hand.fleet.time + 6.0)
        hand.poll(**{f"w{latest}": DIED})
    hand.until(hand.fleet.time + 6.0)
    with pytest.raises(PoolError, match=r"^3 workers failed before they began"):
        hand.poll(w5=DIED)


@pytest.mark.parametrize("place, bound", [("preparing", 3600), ("compiling", 3600), ("proven", 300), ("slow", 20 * 40)])
def test_a_worker_that_is_silent_for_too_long_is_lost(place, bound):
    hand = Handled(a=1)
    hand.until(10_000.0)  # it waits for room as long as it takes
    assert not hand.said
    hand.placed(0, "a")
    if place != "preparing":
        hand.submit(0)
        hand.poll(w0=Ready(capacity=4, versions=VERSIONS))
    if place in ("proven", "slow"):
        hand.fleet.time += 500.0  # it compiles: that counts for nothing
        for seconds in (0.0, 40.0, 40.0, 900.0, 0.0) if place == "slow" else (0.0, 0.0, 15.0, 900.0):
            hand.poll(w0=report())
            hand.fleet.time += seconds
        hand.fleet.time -= seconds
        hand.poll(w0=report())
    begin = hand.fleet.time
    hand.until(begin + bound)
    assert len(hand.said) == (place != "preparing")
    hand.poll()
    again = "" if place == "preparing" else ": 1 trainings begin again"
    assert hand.said[-1] == f"lost the worker a/0 (no answer for {bound + 1} s){again}"


def test_a_suspended_pool_waits_for_epochs_and_not_for_programs():
    hand = Handled(a=2)
    hand.poll()
    hand.ready(0, "a", 1)
    hand.submit(0)
    hand.poll()
    begin = hand.fleet.time
    assert hand.pool.suspend() == [] and hand.fleet.time == begin  # its first epoch compiles
    hand.poll(w0=report(capacity=1))
    hand.fleet.answer(0, report(0, capacity=1))
    assert [o.job.subject for o in hand.pool.suspend()] == ["0"]


def lost_alone(hand: Handled, worker: int, node: str) -> None:
    """A job is lost with this worker, and once more with the one that takes its place: it trains alone from then on."""
    for _ in range(2):
        hand.ready(worker, node, 1)
        hand.poll(**{f"w{worker}": DIED})
        if hand.pool._suspects.alone:
            return
        hand.poll()
        worker = len(hand.fleet.starts) - 1


def test_a_job_alone_waits_a_minute_for_room_that_seems_to_be_there_and_then_takes_anothers():
    hand = Handled(a=1, b=1)
    hand.poll()
    hand.placed(0, "a")
    hand.submit(0)
    lost_alone(hand, 1, "b")
    hand.poll(w0=Ready(capacity=4, versions=VERSIONS))
    lone = len(hand.fleet.starts) - 1
    assert hand.fleet.starts == [(False, set())] * 3 + [(True, set())] and lone == 3
    begin = hand.fleet.time
    hand.submit(1, 2, 3)
    hand.until(begin + 58.0)
    assert hand.fleet.jobs(0) == ["1", "2", "3"] and 0 not in hand.fleet.killed
    waited = hand.pool._members[lone].since
    hand.until(waited + 60.0)
    assert 0 not in hand.fleet.killed
    hand.poll()
    assert hand.fleet.killed[-1] == 0 and hand.pool.ahead == -3 and len(hand.fleet.starts) == 4
    hand.placed(lone, "a")
    hand.poll(w3=Ready(capacity=1, versions=VERSIONS))
    assert hand.fleet.jobs(lone) == ["0"] and hand.pool.capacity == 0 and hand.fleet.starts[4:] == [(False, set())]
    assert [o.job.subject for o in hand.poll(w3=report(0, capacity=1))] == ["0"]
    hand.poll()
    assert hand.fleet.killed[-1] == lone and hand.fleet.starts[5:] == [(False, set())]  # nothing is left to train alone


def test_a_job_alone_that_crashed_on_a_node_goes_to_another_at_once_and_comes_back_if_that_has_no_room():
    hand = Handled(a=1, b=1)
    hand.poll()
    hand.placed(1, "b")
    hand.submit(0)
    lost_alone(hand, 0, "a")
    hand.poll(w1=Ready(capacity=4, versions=VERSIONS))
    lone = len(hand.fleet.starts) - 1
    hand.ready(lone, "a", 1)
    crash = Lost(reason="SIGSEGV", cause=Cause.ITSELF)
    hand.poll(**{f"w{lone}": crash})
    hand.poll()
    assert hand.fleet.starts[-1] == (True, {"a"}) and hand.fleet.killed[-1] == 1  # at once: b is full
    lone = len(hand.fleet.starts) - 1
    begin = hand.pool._members[lone].since
    hand.until(begin + 60.0)
    assert hand.fleet.starts[-1] == (True, {"a"}) and hand.fleet.killed[-1] == 1
    hand.poll()
    hand.poll()
    assert hand.fleet.starts[-1] == (True, set()) and hand.fleet.killed[-1] == lone
    lone += 1
    hand.ready(lone, "a", 1)
    (crashed,) = hand.poll(**{f"w{lone}": crash})
    assert (crashed.status, crashed.reason, crashed.curve, crashed.seconds) == ("crashed", "SIGSEGV", (), 0.0)
    assert hand.said[-2:] == [
        f"lost the worker a/{lone} (SIGSEGV): 1 trainings begin again",
        "training 0 alone brings a worker down: its outcome is a crash (SIGSEGV)",
    ]
    assert hand.pool.idle
