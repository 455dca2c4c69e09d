"""Sweeps: what is asked for, who runs when, what happens to a sweep, and what it shows in the end."""

import contextlib
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from absl import flags
from rich.console import Console
from test_figures import Clock, Tty
from test_launch import program
from test_ranking import row
from test_runs import REPOSITORY, StandIn, plan, rows, search

import bpevo
import bpevo.sweep
from bpevo import data, report
from bpevo.command import definitions, plans, pools, process, sweeping
from bpevo.command.sweeping import Member, Sweep, members
from bpevo.runs import Glance, Rows, RunDatabase, RunError

TINY = (
    "--dataset=digits", "--model=mlp-8", "--train_examples=64", "--batch_size=32", "--epochs=1", "--max_evaluations=12",
    "--elite_size=4", "--slots=4",
)  # fmt: skip


def values(*arguments: str) -> flags.FlagValues:
    made = flags.FlagValues()
    for define in (definitions.define_common, definitions.define_search, definitions.define_sweep):
        define(made)
    made(["bpevo.sweep", *TINY, *arguments])
    return made


# What is asked for.


def test_every_combination_is_a_search_in_a_folder_that_says_what_varies(tmp_path):
    asked = values(
        f"--workdir={tmp_path}", "--vary=optimizer=sgd | momentum", "--vary=seed=0|1", "--seed=9", "--noequivalence",
        "--max_hours=3",
    )  # fmt: skip
    made = members(asked)
    assert [m.name for m in made] == [f"optimizer={o},seed={s}" for o in ("sgd", "momentum") for s in (0, 1)]
    first = made[0]
    assert first.workdir == tmp_path / first.name and first.planned == 12 and not first.finished
    own = {"--optimizer=sgd", "--seed=0", f"--workdir={first.workdir}"}  # what varies wins over what is given
    assert set(first.flags) == own | {*TINY, "--noequivalence"}
    assert len({m.settings for m in made}) == 4


def test_a_value_with_a_slash_makes_no_folder_of_its_own(tmp_path):
    rules = tmp_path / "rules"
    rules.write_text("g\n")
    made = members(values(f"--workdir={tmp_path}", f"--vary=initial=known|{rules}"))
    assert [m.workdir.parent for m in made] == [tmp_path, tmp_path]
    assert f"--initial={rules}" in made[1].flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--vary='FLAG=VALUE|VALUE' is needed"),
        (["--vary=optimiser=sgd|adam"], "there is no flag 'optimiser'; the nearest is 'optimizer'"),
        (["--vary=seed=0|1", "--vary=seed=2"], "--seed varies already"),
        (["--vary=seed"], "a value is empty"),
        (["--vary=seed=0|"], "a value is empty; write --vary='seed=FIRST|SECOND'"),
        (["--vary=seed=0|0"], "a value is there twice"),
        (["--vary=workdir=a|b"], "all searches share --workdir"),
        (["--vary=workers=1|2"], "all searches share --workers"),
        (["--vary=seed=0|many"], "seed=many: .*--seed"),
        (["--vary=optimizer=sgd|lbfgs"], "optimizer=lbfgs: .*lbfgs"),
        (["--vary=epochs=1|0"], "epochs=0: .*at least 1"),
        (["--vary=operands=g|q"], "operands=q: .*'q'"),
        (["--vary=seed=0|1", "--pool=ray", "--lag=4"], "needs --workers"),
        (["--vary=seed=0", "--workers=2"], "seed=0: --workers=2 is of a pool: give --pool=ray too"),
        (["--vary=seed=0", "--worker_cpus=2"], "seed=0: --worker_cpus=2 is of a pool"),
        (["--vary=seed=0", "--pool=ray", "--workers=1", "--worker_cpus=0"], "--worker_cpus=0 must be at least 1"),
        (["--vary=model=" + "-".join(["mlp", *["8"] * 120])], "too long for the name of a folder"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(tmp_path, arguments, message):
    with pytest.raises(plans.UsageError, match=message) as error:
        members(values(f"--workdir={tmp_path}", *arguments))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_name_of_a_folder_has_up_to_200_bytes(tmp_path):
    long = "g;" * 95 + "fa"  # with "initial=" 200
    (made,) = members(values(f"--workdir={tmp_path}", "--controller=random", f"--vary=initial={long}"))
    assert len(made.name) == 200 and made.name == f"initial={long}"
    with pytest.raises(plans.UsageError, match=";dfa is too long for the name of a folder"):
        members(values(f"--workdir={tmp_path}", "--controller=random", f"--vary=initial={long[:-2]}dfa"))
    assert members(values(f"--workdir={tmp_path}", "--vary=unaries=clip:0.5"))[0].name == "unaries=clip:0.5"


def test_a_workdir_and_data_are_needed(tmp_path):
    with pytest.raises(
        plans.UsageError, match="--workdir=FOLDER is needed: each search gets a folder of its own in it"
    ):
        members(values("--vary=seed=0|1"))
    with pytest.raises(data.DataError, match="^seed=0: .*no_such"):
        members(values(f"--workdir={tmp_path}", "--vary=seed=0|1", "--dataset=no_such.npz"))


def test_each_search_is_the_ordinary_launch(tmp_path):
    asked = [*sweeping.LAUNCH, f"--workdir={tmp_path}", "--batch_size=0"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.startswith("bpevo.launch: batch_size")


# Who runs when.

# A search that takes the exit code in `code` beside its folder; without one it waits until it is terminated.
SEARCH = """
import os, pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[1].partition("=")[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
(workdir / "run.sqlite").touch()
others = list(workdir.parent.glob("*/running"))
(workdir / "running").touch()
(workdir / "session").write_text(str(os.getsid(0) == os.getpid()))
(workdir / "beside").write_text(str(len(others)))
code = workdir.parent / f"{workdir.name}.code"
while not code.exists():
    time.sleep(0.01)
while len(list(workdir.parent.glob("*/beside"))) < int(sys.argv[2]):
    time.sleep(0.01)
(workdir / "running").unlink()
print("first line\\nlast line", flush=True)
sys.exit(int(code.read_text()))
"""


def sweep(folder: pathlib.Path, codes: dict[str, int | None], at_once: int = 1) -> Sweep:
    """A sweep of searches that end with these exit codes, once so many have begun as run at once."""
    asked = []
    for name, code in codes.items():
        (folder / f"{name}.code").unlink(missing_ok=True)
        if code is not None:
            (folder / f"{name}.code").write_text(str(code))
        workdir = folder / name
        asked.append(Member(name=name, workdir=workdir, flags=(f"--workdir={workdir}",), planned=12, settings="{}"))
    return Sweep(asked, at_once, [sys.executable, "-S", "-c", SEARCH], [str(at_once)])


def states(made: Sweep) -> list[str]:
    return [state.state for state in made.states.values()]


def nothing() -> None:
    pass


def test_searches_run_one_after_the_other_or_as_many_at_once_as_there_is_room_for(tmp_path):
    for at_once in (1, 3):
        folder = tmp_path / str(at_once)
        folder.mkdir()
        made = sweep(folder, {"a": 0, "b": 0, "c": 0}, at_once)
        made.run(nothing)
        beside = sorted(int((folder / name / "beside").read_text()) for name in "abc")
        assert beside[0] == 0 and max(beside) < at_once and (at_once == 1 or beside != [0, 0, 0])
        assert (made.code, states(made)) == (0, ["done"] * 3)


def test_a_sweep_that_is_stopped_ends_what_runs_and_skips_what_has_ended_when_it_goes_on(tmp_path):
    made = sweep(tmp_path, {"a": 0, "b": None, "c": 0})

    def stopping() -> None:
        if (tmp_path / "b" / "running").exists():
            made.stop()

    made.run(stopping)
    assert states(made) == ["done", "interrupted", "waiting"] and made.stopped
    started = (tmp_path / "a" / "beside").stat().st_mtime_ns
    again = sweep(tmp_path, {"a": 0, "b": 0, "c": 0})
    again.run(nothing)
    assert (again.code, states(again)) == (0, ["done before", "done", "done"])
    assert (tmp_path / "a" / "beside").stat().st_mtime_ns == started


def test_a_search_that_fails_is_told_and_the_others_go_on(tmp_path):
    made = sweep(tmp_path, {"a": 2, "b": 0})
    made.run(nothing)
    assert (made.code, states(made), made.said) == (2, ["failed", "done"], ["a: last line"])
    assert (tmp_path / "a" / "session").read_text() == "True"  # of its own: a terminal's signals reach the sweep alone


@pytest.mark.parametrize(
    ("ended", "code", "states_after", "said"),
    [
        ([0, 0], 0, ["done", "done"], []),
        ([129, 2], 129, ["interrupted", "failed"], ["b: exit code 2, see {folder}/b/log.txt"]),
        ([128, 0], 128, ["failed", "done"], ["a: exit code 128, see {folder}/a/log.txt"]),
        ([2, 75], 75, ["failed", "failed"], None),
        ([1, 3], 1, ["failed", "failed"], None),
        ([-15, 0], 75, ["failed", "done"], ["a: its process was ended by SIGTERM"]),
    ],
)
def test_how_searches_ended_is_told_and_decides_the_exit_code(tmp_path, ended, code, states_after, said):
    """The first that failed decides; but where a device failed the same command continues."""
    asked = [Member(name=n, workdir=tmp_path / n, flags=(), planned=12, settings="{}") for n in "ab"]
    made = Sweep(asked, 1, [])
    assert (made.code, made.stopped, states(made)) == (0, False, ["waiting", "waiting"])
    for member, of in zip(asked, ended, strict=True):
        made._end(member, of)
    assert (made.code, states(made)) == (code, states_after)
    assert said is None or made.said == [line.format(folder=tmp_path) for line in said]


@pytest.mark.parametrize("code, left", [(74, True), (75, False), (76, True)])
def test_only_a_device_that_failed_ends_the_waiting(tmp_path, code, left):
    made = sweep(tmp_path, {"a": 0, "b": 0})
    made._end(Member(name="a", workdir=tmp_path / "a", flags=(), planned=12, settings="{}"), code)
    assert bool(made._waiting) is left


def test_the_last_words_are_the_last_line_of_the_last_4000_bytes(tmp_path):
    member = Member(name="a", workdir=tmp_path, flags=(), planned=12, settings="{}")
    member.log.write_bytes(b"first\n" + b"x" * 3989 + b"\n\xff\x1b last\n \n")
    assert sweeping._last_words(member, 1) == "\ufffd\\x1b last"
    member.log.write_bytes(b"y" + b"x" * 4000)
    assert sweeping._last_words(member, 1) == "x" * 4000
    member.log.write_bytes(b" \n")
    assert sweeping._last_words(member, 3) == f"exit code 3, see {tmp_path}/log.txt"


def test_a_search_that_cannot_be_started_ends_the_sweep_with_a_message(tmp_path):
    asked = [Member(name="a", workdir=tmp_path / "a", flags=(), planned=12, settings="{}")]
    with pytest.raises(RunError, match=f"^cannot start a search in {tmp_path}/a: No such file or directory$"):
        Sweep(asked, 1, ["/no/such/program"]).run(nothing)


def test_where_a_device_or_a_cluster_failed_nothing_more_is_started(tmp_path):
    made = sweep(tmp_path, {"a": 75, "b": 0})
    made.run(nothing)
    assert (made.code, states(made)) == (75, ["failed", "waiting"])


def test_a_search_that_is_killed_may_go_on(tmp_path):
    made = sweep(tmp_path, {"a": None})

    def killing() -> None:
        if (tmp_path / "a" / "running").exists():
            for _, child in made._running.values():
                child.kill()

    made.run(killing)
    assert (made.code, states(made)) == (75, ["failed"]) and made.said == ["a: its process was ended by SIGKILL"]


def test_other_settings_are_another_search(tmp_path):
    (member,) = members(values(f"--workdir={tmp_path}", "--vary=seed=0"))
    member.workdir.mkdir()
    search(member.workdir, plan(12), StandIn(4))
    member.finish()
    assert member.finished
    (longer,) = members(values(f"--workdir={tmp_path}", "--vary=seed=0", "--max_evaluations=40"))
    assert not longer.finished
    (slower,) = members(values(f"--workdir={tmp_path}", "--vary=seed=0", "--slots=4", "--metrics=csv"))
    assert slower.finished
    assert Sweep([slower], 1, [], []).states["seed=0"].reached.trained == 12


def ran(*arguments: str) -> tuple[int, list[str]]:
    """The exit code and what is printed, in this process."""
    output = io.StringIO()
    code = sweeping.run(values(*arguments), Console(file=output, width=100), process.Interruption())
    return code, output.getvalue().splitlines()


def test_where_some_failed_the_sweep_says_so_and_takes_their_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sweeping, "LAUNCH", [sys.executable, "-S", "-c", "print('out of [b]luck'); raise SystemExit(3)"]
    )
    code, said = ran(f"--workdir={tmp_path}", "--vary=seed=0|1")
    assert code == 3 and said[0] == "2 searches, 1 at once" and not any("best rule" in line for line in said)
    assert said[-3:] == [
        "seed=0: out of [b]luck", "seed=1: out of [b]luck",
        "not all have ended: what was trained is kept; the same command continues",
    ]  # fmt: skip


def test_what_searches_have_reached_is_looked_at_while_they_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "LOOK", 0.0)
    looks, watched = [], []
    monkeypatch.setattr(Sweep, "_look", lambda self, member: looks.append((member.name, member.name in self._running)))
    made = sweep(tmp_path, {"a": None})

    def until_looked_at() -> None:
        watched.append(None)
        if ("a", True) in looks or len(watched) > 20:
            (tmp_path / "a.code").write_text("0")

    made.run(until_looked_at)
    assert looks[:2] == [("a", False), ("a", True)] and looks[-1] == ("a", False)


def test_an_error_ends_what_runs(tmp_path):
    made, children = sweep(tmp_path, {"a": None, "b": None}, 2), []

    def failing() -> None:
        if all((tmp_path / name / "running").exists() for name in "ab"):
            children.extend(child for _, child in made._running.values())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made.run(failing)
    assert [child.returncode for child in children] == [143, 143]


def test_searches_that_share_a_cluster_get_its_address_and_what_their_workers_need(tmp_path, monkeypatch):
    shared = []

    @contextlib.contextmanager
    def share(plan, searches, interruption):
        shared.append((plan.workers, searches))
        yield 5, pools.PoolPlan(address="head:1", workers=2, cpus=plan.cpus)

    monkeypatch.setattr(pools, "shared", share)
    told = "import sys; print(sys.argv[-2:]); raise SystemExit(3)"
    monkeypatch.setattr(sweeping, "LAUNCH", [sys.executable, "-S", "-c", told])
    pool = ("--pool=ray", "--workers=2", "--lag=4", f"--workdir={tmp_path}")
    code, said = ran("--vary=seed=0", *pool, "--worker_cpus=3")
    assert (code, said[0]) == (
        3,
        "1 searches, 1 at once",
    ) and "seed=0: ['--ray_address=head:1', '--worker_cpus=3']" in said
    assert ran("--vary=seed=0|1", *pool)[1][0] == "2 searches, 2 at once" and shared == [(2, 1), (2, 2)]
    for member in members(values("--vary=seed=0|1", *pool)):
        (member.workdir / "run.sqlite").touch()
        member.finish()
    monkeypatch.setattr(sweeping, "write", lambda folder: (f"{folder}/page", "another"))
    code, said = ran("--vary=seed=0|1", *pool)
    assert code == 0 and len(shared) == 2 and said[0] == "2 searches, 1 at once"  # nothing is left to run on a cluster
    assert said[-1] == f"report: {tmp_path}/page"


def test_a_sweep_is_a_program_that_takes_no_accelerator(monkeypatch):
    (name, defined, run), named = program(monkeypatch, bpevo.sweep)
    assert (name, run) == ("bpevo.sweep", sweeping.run) and named["elsewhere"](None) is True
    assert [d.__name__ for d in defined] == ["define_common", "define_search", "define_sweep"]


# A whole sweep, over stand-ins for training.

PLAN = plan(40, top=2, repeats=2)
LAUNCH = [
    sys.executable, "-c", "import sys, test_sweep; test_sweep.launch(*sys.argv[1:])",
]  # fmt: skip


def launch(*arguments: str) -> None:
    """As bpevo.launch, with StandIn."""
    (workdir,) = [a.partition("=")[2] for a in arguments if a.startswith("--workdir=")]
    interruption = process.Interruption()
    interruption.install()

    def watch(made, fresh):
        interruption.search = made

    try:
        search(workdir, PLAN, StandIn(4, seconds=0.05), watch)
    except KeyboardInterrupt:
        sys.exit(interruption.code)


def test_a_sweep_that_is_terminated_in_the_middle_goes_on_and_ends_with_a_table_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "LAUNCH", LAUNCH)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}")
    folder = tmp_path / "swept"
    asked = values(f"--workdir={folder}", "--vary=seed=0|1", "--noselfcheck")

    def terminate_in_the_middle() -> None:
        while True:
            with contextlib.suppress(Exception), RunDatabase.reading(folder / "seed=0") as database:
                if len(database.rows()) > 10:
                    return os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)

    def run() -> tuple[int, str]:
        output, interruption = io.StringIO(), process.Interruption()
        with interruption.installed():
            code = sweeping.run(asked, Console(file=output, width=100), interruption)
        return code, output.getvalue()

    threading.Thread(target=terminate_in_the_middle).start()
    code, said = run()
    assert code == 143 and "seed=0: interrupted" in said and "the same command continues" in said
    trained = len(rows(folder / "seed=0")["evaluations"])
    assert 10 < trained < 40 and not (folder / "seed=1").exists()
    code, said = run()
    assert "the best rule of each search" in " ".join(said.split())
    assert code == 0 and re.search(r"seed=0: done, trainings 40 of 12, best % \d", said) and "seed=1: done" in said
    search(tmp_path / "undisturbed", PLAN, StandIn(4))
    assert rows(folder / "seed=0") == rows(folder / "seed=1") == rows(tmp_path / "undisturbed")
    page = (folder / "report" / "report.html").read_text()
    assert "2 searches" in page and "Search seed=0" in page and "Search seed=1" in page
    assert f"report: {folder}/report/report.html" in said
    assert all(member.finished for member in members(asked))


@pytest.mark.cluster
def test_searches_that_share_a_cluster_run_at_once_and_have_the_rows_of_this_process(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    settings = dict(
        dataset="digits", model="mlp-8", train_examples=64, batch_size=32, epochs=1, learning_rates=[0.1], slots=2, lag=4,
        max_evaluations=24, elite_size=8, top=1, repeats=1,
    )  # fmt: skip
    given = [f"--{name}={value[0] if isinstance(value, list) else value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "bpevo.sweep", *given, "--pool=ray", "--workers=1", "--vary=seed=0|1"]
    own = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [*command, f"--workdir={tmp_path / 'swept'}"], env=own, capture_output=True, text=True, timeout=500
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    at_once = min(2, len(os.sched_getaffinity(0)))
    assert f"2 searches, {at_once} at once" in ended.stdout and "report: " in ended.stdout
    for seed in (0, 1):
        bpevo.Search(tmp_path / str(seed), **settings, seed=seed).run()
        assert rows(tmp_path / "swept" / f"seed={seed}") == rows(tmp_path / str(seed))


# What it shows.


def test_the_overview_has_each_searchs_best_rule_beside_its_backprop(tmp_path):
    search(tmp_path, plan(60, top=2, repeats=3), StandIn(4))
    with RunDatabase.reading(tmp_path) as database:
        judged, glance = database.judged(), database.glance()
    board = report.leaderboard(judged, 10, (0.1,))
    row = report.best_found("seed=0", judged, {"learning_rates": [0.1]})
    assert row.best == next(r for r in board if not r.label) and row.backprop == next(
        r for r in board if r.label == "backprop"
    )
    console = Console(file=io.StringIO(), width=150)
    console.print(report.overview_table([row], "title"))
    text = console.file.getvalue()
    assert f"seed=0: {row.best.equation[:20]}" in text
    for shown in (
        f"{row.best.search:.2f}",
        f"{row.best.mean:.2f} ± {row.best.deviation:.2f}",
        f"{row.backprop.mean:.2f}",
    ):
        assert shown in text
    best = max(r.accuracy for r in judged.of(stage="search") if r.accuracy is not None)
    assert glance.trained == 60 and glance.backprop == 0.01 * row.backprop.search and glance.best >= best


def test_without_a_terminal_a_search_has_a_line_whenever_something_is_new():
    console = Console(file=io.StringIO(), width=100)
    state = report.SearchState(state="waiting", planned=40, reached=Glance())
    watch = report.Searches(console, {"seed=0": state})
    with watch.running():
        watch(), watch()
        state.state = "running"
        watch(), watch()
        state.state, state.reached = "done", Glance(trained=40, best=0.5, backprop=0.75)
        watch(), watch()
    assert console.file.getvalue().splitlines() == [
        "seed=0: waiting",
        "seed=0: running",
        "seed=0: done, trainings 40 of 40, best % 50.00, backprop % 75.00",
    ]


def test_the_best_rule_of_a_search_is_the_best_on_fresh_seeds_among_its_ten_best(monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.report.leaderboard"], "kind", lambda _: "")
    texts = [f"clip(fa, {i}.0)" for i in range(1, 12)]
    found = [row(text, 0.9 - i / 100, proposal=i) for i, text in enumerate(texts)]
    fresh = [row(text, 0.5 + i / 100, stage="selection", replicate=1) for i, text in enumerate(texts)]
    best = report.best_found("a", Rows([*found, *fresh]), {})
    assert best.best.equation == texts[9] and best.backprop.status == "not trained yet"
    assert report.best_found("a", Rows(), {}) == report.Found(search="a", best=None, backprop=best.backprop)


def test_new_figures_of_a_search_are_told_when_ten_seconds_are_over_and_a_new_state_at_once(monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.report.overview"], "time", clock := Clock(1000.0))
    console = Console(file=io.StringIO(), width=20)
    states = {name: report.SearchState(state="running", planned=4000, reached=Glance()) for name in ("[a]", "b")}
    watch = report.Searches(console, states)
    watch()
    for passed, trained in ((5.0, 1), (5.0, 2), (0.5, 2000), (9.0, 3000)):
        clock.now += passed
        states["[a]"].reached = Glance(trained=trained, best=0.5)
        watch()
    states["b"].state = "done"
    watch()
    clock.now += 2.0
    watch()
    assert console.file.getvalue().splitlines() == [
        "[a]: running",
        "b: running",
        "[a]: running, trainings 2,000 of 4,000, best % 50.00",
        "b: done",
        "[a]: running, trainings 3,000 of 4,000, best % 50.00",
    ]


def test_a_terminal_has_a_table_of_the_searches_with_the_notice_for_its_title():
    console = Console(file=Tty(), width=60, force_terminal=True, color_system=None)
    state = report.SearchState(state="running", planned=40, reached=Glance(trained=2, best=0.5, backprop=0.75))
    watch = report.Searches(console, {"a": state})
    with watch.running():
        watch()
        assert [line.numbers for line in watch._table().lines] == [["running", "2 of 40", "50.00", "75.00"]]
        assert watch._table().title == "searches" and watch.notice("wait")
        state.state = "done"
    assert not watch.notice("over")
    last = console.file.getvalue().rpartition("wait")[2]
    assert "│ a " in last and "done" in last and "a: " not in console.file.getvalue()
