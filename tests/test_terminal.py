"""What terminals of all widths and kinds show, and what a file gets: on pseudo-terminals, read as their screens would."""

import collections
import dataclasses
import fcntl
import io
import os
import pathlib
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import types

import pytest
from absl import flags
from rich.cells import cell_len
from rich.console import Console
from test_faults import COMMAND
from test_figures import EVALUATION, SEARCH, SETTINGS, Clock, watched
from test_runs import StandIn, plan, search

from bpevo.command import definitions, main, plans
from bpevo.command.process import STOPPING, Interruption, Output
from bpevo.data import DataError
from bpevo.data.progress import reporter
from bpevo.evaluation import standings
from bpevo.report import Progress, Stages, leaderboard, progress, standings_table, table
from bpevo.report.terminal import Line, TextTable
from bpevo.rules import parse
from bpevo.runs import Rows, RunError
from bpevo.training import DeviceLost, OutOfMemory
from bpevo.workers import PoolError, PoolLost, Stage

REPOSITORY = pathlib.Path(__file__).parents[1]
LONG = "(unit_col2(sgn_W) @ b_next.T).T * (dh - 0.01)"


def screen(output: str, width: int) -> list[str]:
    """What a terminal shows in the end, with all that scrolled out of it. Any code that it does not know is an error."""
    rows, row, column = [[]], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|.|\n", output.replace("\r\n", "\n\r"), re.S):
        if part.startswith("\x1b"):
            number, code = part[2:-1], part[-1]
            if code == "A":
                row = max(0, row - int(number or 1))
            elif code == "K":
                assert number == "2"
                rows[row] = []
            else:
                assert code in "mhl", repr(part)  # colours, and the cursor's visibility
        elif part == "\n":
            row += 1
        elif part == "\r":
            column = 0
        else:
            if column >= width:
                row, column = row + 1, 0
            rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = part
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    return ["".join(r).rstrip() for r in rows]


class Terminal:
    """A process on a pseudo-terminal of a given width."""

    def __init__(self, arguments: list, width: int, **environment: str):
        self.output, (self._side, end) = "", os.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "COLUMNS", "LINES", "NO_COLOR"))
        }
        path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
        kept |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], env=kept | environment, stdin=end, stdout=end, stderr=end,
            start_new_session=True,
        )  # fmt: skip
        os.close(end)

    def read_until(self, pattern: str, seconds: float = 120.0) -> None:
        """Until the output matches; to the process's end for an empty pattern."""
        end = time.monotonic() + seconds
        while not (pattern and re.search(pattern, self.output)):
            assert time.monotonic() < end, self.output[-2000:]
            if select.select([self._side], [], [], 1.0)[0]:
                try:
                    data = os.read(self._side, 65536)
                except OSError:  # EIO: the other end was closed
                    data = b""
                if not data:
                    assert not pattern, self.output[-2000:]
                    break
                self.output += data.decode("utf-8", "replace")

    def finish(self) -> int:
        self.read_until("")
        os.close(self._side)
        return self.process.wait(60)


def shown_search(workdir: str) -> None:
    """Run in a process of its own: a search on a stand-in with its progress, then the leaderboard."""
    console = Console(file=Output(sys.stdout))
    progress = Progress(console)
    with progress.running():
        made = search(workdir, plan(24), StandIn(4, seconds=0.01), progress)
    console.print(table(leaderboard(made.rows, 2), "the leaderboard"))


SHOWN = ["-c", "import sys, test_terminal as t; t.shown_search(sys.argv[1])"]


def printed(renderable, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 46, 52, 64, 80, 160])
def test_no_width_of_a_terminal_hides_a_rule_or_a_number(width):
    def renamed(rows: Rows, text: str) -> Rows:
        return Rows([*rows, *(dataclasses.replace(row, equation=LONG) for row in rows.of(equation=text))])

    board = leaderboard(renamed(SEARCH, "unit_fro(g)"), 4)
    settings = SETTINGS | {"rules": [*SETTINGS["rules"], LONG]}
    stand = standings(renamed(EVALUATION, "fa"), settings)
    for shown, numbers in (
        (table(board, "a title"), ("70.00", "74.00 ± 2.58", "+11.0 ± 5.0", "62.00 ± 4.00")),
        (standings_table(stand, "a1"), ("0.3*", "85.00 ± 2.45", "+2.00 ± 1.30")),
    ):
        lines = printed(shown, width)
        assert all(cell_len(line) <= width for line in lines)
        text = re.sub(r"[\s│┃]", "", "".join(lines))
        for number in numbers:
            assert number.replace(" ", "") in text, (number, lines)
        if not any("│" in line for line in lines):  # a rule on lines of its own is whole, as far as it may be
            assert LONG.replace(" ", "") in text
            assert width < 46 or LONG in "\n".join(lines)
        else:
            first = [line.split("│")[1] for line in lines if "│" in line]
            assert LONG.replace(" ", "") in "".join(first).replace(" ", "") and max(map(len, first)) >= 24


def test_a_text_table_is_a_table_where_the_texts_have_room_and_stacked_where_not():
    board = table(leaderboard(SEARCH, 1), "a title")
    # Numbers 4 + 8 + 12 + 1 + 11, blanks 2·6, borders 7: 55, and 24 for a text longer than that.
    assert any("│" in line for line in printed(board, 79)) and not any("│" in line for line in printed(board, 78))
    assert printed(board, 46) == [
        "a title",
        "unit_fro(g)  [backprop, rescaled per unit]",
        "  lr 0.3*  search % 70.00",
        "  fresh % 74.00 ± 2.58  n 4",
        "  vs backprop +11.0 ± 5.0",
        "backprop: g",
        "  lr 0.3*  search % 60.00",
        "  fresh % 62.00 ± 4.00  n 3",
        "zero_signal: g - g",
        "  lr 0.3*  search % 20.00",
    ]


def test_a_terminal_of_46_columns_shows_a_search_and_its_leaderboard(tmp_path):
    terminal = Terminal([*SHOWN, tmp_path], 46)
    assert terminal.finish() == 0
    lines = screen(terminal.output, 46)
    assert "\x1b[1A" in terminal.output  # it was a live panel
    end = "\n".join(lines)
    assert re.search(r"evaluations +2[34] of 24", end) and re.search(r"best +\d+\.\d\d %\s+\S", end)
    board = lines[lines.index("the leaderboard") :]
    control = next(i for i, line in enumerate(board) if line.startswith("zero_signal: g - g"))
    assert re.fullmatch(r"  lr [0-9.]+\*?  search % \d+\.\d\d", board[control + 1])


@pytest.mark.parametrize("width", [46, 120])
def test_a_dumb_terminal_gets_plain_lines(tmp_path, width):
    terminal = Terminal([*SHOWN, tmp_path], width, TERM="dumb")
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.output and "compiling the training program …" in terminal.output
    assert re.search(r"stage \w+, evaluations \d+ of 24 .*best \d", terminal.output.replace("\r\n", " "))


def test_a_file_gets_no_cursor_codes_even_where_colours_are_forced(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "FORCE_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, *SHOWN, tmp_path], env=environment, capture_output=True, check=True, timeout=120
    )
    assert set(re.findall(rb"\x1b\[[?0-9;]*([A-Za-z])", done.stdout)) == {b"m"}  # colours
    assert b"evaluations" in done.stdout and len(done.stdout) < 10_000


def test_a_download_draws_no_bar_into_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with reporter() as report:
        report("decoding", 1, 2)
        report("decoding", 2, 2)
    assert "\x1b" not in sys.stderr.getvalue()


def test_the_line_said_at_ctrl_c_stays_on_the_screen(tmp_path):
    """The command itself, on a terminal that a live display redraws four times a second."""
    arguments = ["-m", "bpevo.launch", f"--workdir={tmp_path / 'run'}", *COMMAND, "--noequivalence"]
    terminal = Terminal([*arguments, "--max_evaluations=100000"], 100)
    terminal.read_until(r"evaluations\S* +\S*[1-9]\d* of")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 128 + signal.SIGINT
    lines = screen(terminal.output, 100)
    said = [i for i, line in enumerate(lines) if STOPPING in line]
    after = [i for i, line in enumerate(lines) if line.startswith("interrupted: every finished training is kept")]
    assert len(said) == 1 and said < after
    assert any("backprop: g" in line for line in lines[after[0] :])  # and the leaderboard follows


def in_notebook(monkeypatch) -> tuple[list[str], list[tuple[int, str]]]:
    """Lines that were made, and lines that took the place of one; the clock is a list that tests set."""
    made, replaced = [], []

    def display(data, raw, display_id):
        assert raw and display_id and list(data) == ["text/plain"]
        made.append(data["text/plain"])
        place = len(made) - 1

        def update(data, raw):
            assert raw
            replaced.append((place, data["text/plain"]))

        return types.SimpleNamespace(update=update)

    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    return made, replaced


def test_a_notebook_has_one_line_of_a_search_that_is_written_anew(monkeypatch, tmp_path):
    made, replaced = in_notebook(monkeypatch)
    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", -1.0)
    console = Console(file=io.StringIO(), force_jupyter=True)
    watch = Progress(console)
    with watch.running():
        search(tmp_path, plan(24), StandIn(4), watch)
    assert made == ["compiling the training program …"] and {place for place, _ in replaced} == {0}
    lines = [line for _, line in replaced]
    assert len(lines) > 10 and re.match(r"stage selection, evaluations 2[34] of 24 .*, best \d", lines[-1])
    monkeypatch.setattr(progress, "NOTEBOOK_SECONDS", 1e9)
    del replaced[:]
    with watch.running():  # as the last word nothing is left out
        search(tmp_path, plan(24), StandIn(4), watch)
        watch(search(tmp_path, plan(24), StandIn(4)), [])
        assert not replaced
    assert len(replaced) == 1 and "of 24" in replaced[0][1]


def test_a_notebook_has_a_line_of_each_stage_of_an_evaluation(monkeypatch):
    made, replaced = in_notebook(monkeypatch)
    watch = Stages(Console(file=io.StringIO(), force_jupyter=True))
    for stage, done, wanted in (("tuning", 1, 3), ("tuning", 2, 3), ("tuning", 3, 3), ("test", 0, 1), ("test", 1, 1)):
        watch(stage, done, wanted, [])
    assert [re.sub(",.*", "", line) for line in made] == ["tuning: 1 of 3 trainings", "test: 0 of 1 trainings"]
    assert [(place, re.sub(",.*", "", line)) for place, line in replaced] == [
        (0, "tuning: 3 of 3 trainings"),
        (1, "test: 1 of 1 trainings"),
    ]


@pytest.fixture
def clock(monkeypatch):
    """Seconds as progress sees them."""
    made = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: made.now))
    return made


def figures(*networks: str, **known) -> types.SimpleNamespace:
    """A search's running figures."""
    controls = known.pop("controls", {})
    plan = types.SimpleNamespace(max_evaluations=1200, networks=types.SimpleNamespace(names=networks or ("",)))
    plain = dict(done=200, best=None, proposals=range(150), infeasible=30, duplicates=20, failures={}, occupancy=0.876)
    found = types.SimpleNamespace(plan=plan, **plain | known)
    found.failures = collections.Counter(found.failures)
    found.control = lambda name, network: controls.get((name, network))
    return found


def staged(**stages: int) -> list:
    return [types.SimpleNamespace(stage=Stage(name)) for name, count in stages.items() for _ in range(count)]


def line_of(search, rows, clock, seconds: float) -> str:
    """The line after a search of so many seconds."""
    console = Console(file=io.StringIO(), width=60)
    watch = Progress(console)
    clock.now += seconds
    watch(search, rows)
    (line,) = console.file.getvalue().splitlines()
    return line


UNIT = parse("unit_fro(g)").to_equation(3)


def test_the_line_of_a_search_tells_its_pace_its_best_and_what_became_of_the_rest(clock):
    rows = staged(control=7, trial=60, search=30, confirmation=10, selection=2)
    counted = "evaluations 200 of 1200 (200/h), time left 300.0 min"  # 100 in 1,800 s, and 1,000 to come
    drawn = "draws 150 drawn, 15% infeasible, 10% duplicate, occupancy 88% of slots"  # of 200
    assert line_of(figures(), rows, clock, 1800.0) == f"stage selection, {counted}, {drawn}"
    told = figures(
        "a", "b", "c",
        best=(UNIT, 0.45678), failures={"below its bar": 1, "loss not finite": 3},
        controls={("backprop", "a"): (0.1, 0.6), ("backprop", "c"): (0.25, 0.54321), ("zero_signal", "b"): (1, 1)},
    )  # fmt: skip
    assert line_of(told, rows[:37], clock, 18.0) == (
        "stage trial, evaluations 200 of 1200 (6,000/h), time left 10.0 min, best 45.68 % unit_fro(g), "
        "backprop 60.00 % (learning rate 0.1) / 54.32 % (learning rate 0.25), failures 3 loss not finite; 1 below its bar, "
        + drawn
    )
    first = figures(done=0, proposals=(), infeasible=0, duplicates=0, occupancy=1.0)
    nothing = "draws 0 drawn, 0% infeasible, 0% duplicate, occupancy 100% of slots"
    assert line_of(first, [], clock, 5.0) == f"stage search, evaluations 0 of 1200 (0/h), {nothing}"
    last = line_of(figures(done=1199), staged(search=1), clock, 3600.0)
    assert last.startswith("stage search, evaluations 1199 of 1200 (1/h), time left 60.0 min, draws ")
    over = figures(done=1200, proposals=(), infeasible=0, duplicates=1)
    assert line_of(over, staged(search=1), clock, 3600.0) == (
        "stage search, evaluations 1200 of 1200 (1/h), draws 0 drawn, 0% infeasible, 100% duplicate, occupancy 88% of slots"
    )


def test_a_line_comes_with_a_new_best_and_when_ten_seconds_are_over(clock):
    console = Console(file=io.StringIO(), width=60)
    watch, counts = Progress(console), []
    for seconds, best in (
        (1.0, None), (9.0, None), (1.0, None), (0.5, None),  # after 10 seconds, and after more
        (1.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 0.5), (1.0, 0.25), (8.5, None), (0.5, 0.25), (1.0, 0.5), (1.0, 0.75),
    ):  # fmt: skip
        clock.now += seconds
        watch(figures(best=None if best is None else (UNIT, best)), [])
        counts.append(len(console.file.getvalue().splitlines()))
    assert counts == [1, 1, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6]


def test_the_panel_shows_the_stage_at_first_then_the_figures_and_below_them_a_notice():
    watch = Progress(Console(file=io.StringIO()))
    assert [line.split() for line in printed(watch._panel(), 80)] == [
        ["stage", "compiling", "the", "training", "program"]
    ]
    watch(figures(), staged(search=1))
    watch.notice(STOPPING)
    lines = [line.rstrip() for line in printed(watch._panel(), 120)]
    assert [line[:13].rstrip() for line in lines] == [
        "stage", "evaluations", "time left", "best", "backprop", "failures", "draws", "occupancy", "",
    ]  # fmt: skip
    assert [line[13:] for line in lines[-3:]] == [
        "150 drawn, 15% infeasible, 10% duplicate",
        "88% of slots",
        STOPPING,
    ]


def test_a_stage_of_an_evaluation_tells_the_time_left_at_its_own_pace(clock):
    console = Console(file=io.StringIO(), width=40)
    watch = Stages(console)
    for seconds, stage, done, wanted, rows in (
        (0.0, "tuning", 2, 40, 0),  # two were there before
        (9.5, "tuning", 3, 40, 1),  # not yet
        (0.5, "tuning", 4, 40, 1),  # 2 in 10 seconds, 36 to come
        (5.0, "tuning", 40, 40, 3),
        (1.0, "test", 0, 8, 0),
        (20.0, "test", 1, 8, 1),  # 7 to come at 20 seconds each
        (40.0, "test", 1, 8, 0),
        (0.0, "test", 8, 8, 0),
    ):
        clock.now += seconds
        watch(stage, done, wanted, [types.SimpleNamespace(equation=f"rule {n}") for n in range(rows)])
    assert console.file.getvalue().splitlines() == [
        "tuning: 2 of 40 trainings",
        "tuning: 4 of 40 trainings, 3.0 min left; rule 0",
        "tuning: 40 of 40 trainings; rule 2",
        "test: 1 of 8 trainings, 2.3 min left; rule 0",
        "test: 1 of 8 trainings, 7.0 min left",
        "test: 8 of 8 trainings",
    ]


def test_a_notebooks_line_is_written_anew_at_most_every_half_a_second(monkeypatch, clock):
    made, replaced = in_notebook(monkeypatch)
    line = progress.NotebookLine("a")
    for seconds, text in ((0.5, "b"), (0.25, "c"), (0.5, "d"), (0.25, "e")):
        clock.now += seconds
        line.show(text)
    assert made == ["a"] and replaced == [(0, "c"), (0, "e")]
    line.show("f")
    line.catch_up()
    line.show("g")
    assert replaced[2:] == [(0, "f")]


def test_a_notice_is_taken_only_where_a_display_shows_it():
    plain = Progress(Console(file=io.StringIO()))
    with plain.running():
        assert not plain.notice(STOPPING)


# The process around a command, in this one.


class Stopped:
    """A search that is asked to stop."""

    asked = 0

    def stop(self):
        self.asked += 1


@pytest.fixture
def handlers():
    """Those of before come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number, code", [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_at_once_what_has_no_search_yet_and_stops_a_search_with_a_line(handlers, capfd, number, code):
    interruption = Interruption()
    interruption.install()
    assert interruption.code == 130  # where Python itself raised KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert interruption.code == code and capfd.readouterr().err == ""
    interruption.search = search = Stopped()
    signal.raise_signal(number)
    assert search.asked == 1 and capfd.readouterr().err == STOPPING + "\n"
    shown = []
    interruption.notice = lambda line: not shown.append(line)
    signal.raise_signal(number)
    assert search.asked == 2 and shown == [STOPPING] and capfd.readouterr().err == ""


def test_handlers_are_installed_within_a_run_and_again_where_a_library_took_them(handlers):
    interruption = Interruption()
    interruption.restore()
    assert {number: signal.getsignal(number) for number in handlers} == handlers  # it was not installed
    with interruption.installed():
        own = {number: signal.getsignal(number) for number in handlers}
        assert set(own.values()) == {interruption._handle}
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interruption.restore()
        assert {number: signal.getsignal(number) for number in handlers} == own
    assert {number: signal.getsignal(number) for number in handlers} == handlers

    def beside():
        with Interruption().installed():
            seen.append({number: signal.getsignal(number) for number in handlers})

    seen = []
    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert seen == [handlers]  # signals are for the main thread


def test_an_output_that_fails_is_silent_from_then_on_and_one_that_is_not_there_takes_everything():
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w", encoding="ascii", buffering=1)
    output = Output(stream)
    assert output.write("caf\u00e9\n") == 5 and output.write("more\n") == 5
    output.flush()
    stream.close()
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="ascii")
    output = Output(stream)
    assert output.write("caf\u00e9") == 4
    output.flush()
    assert os.read(reading, 100) == b"caf?" and output.encoding == "ascii"
    output.write("lost")
    os.close(reading)
    output.flush()  # fails only now
    stream.close()
    absent = Output(None)
    assert absent.write("text") == 4
    absent.flush()
    absent._stream.close()


@pytest.mark.parametrize(
    "error, code",
    [
        (plans.UsageError("--a is wrong\x1b[0m"), 2), (DataError("no data"), 2), (RunError("no run"), 2),
        (OutOfMemory("no room"), 2), (PoolError("no worker"), 2), (DeviceLost("a device failed"), 75),
        (PoolLost("the cluster is gone"), 75),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_error_of_a_command_is_one_line_and_an_exit_code(monkeypatch, handlers, capsys, error, code):
    def fails(values, console, interruption):
        raise error

    assert started(monkeypatch, fails) == code
    said = capsys.readouterr()
    assert said.err == f"bpevo.some: {str(error).replace(chr(27), chr(92) + 'x1b')}\n" and not said.out


def started(monkeypatch, run, left=None, **options) -> int:
    """The exit code of a command in this process; `left` gets whether accelerators were left to others."""
    told = [] if left is None else left
    monkeypatch.setattr(main.flags, "FLAGS", flags.FlagValues())  # others in this process may have defined flags
    monkeypatch.setattr(main, "configure_jax", lambda leave_accelerators: told.append(leave_accelerators))
    monkeypatch.setattr(main.app, "run", lambda begin, flags_parser: begin(["some"]))
    with pytest.raises(SystemExit) as ended:
        main.start("bpevo.some", (), run, **options)
    return ended.value.code


def test_a_command_ends_with_what_it_returns_or_its_signal_and_takes_no_accelerator_that_a_pool_trains_on(
    monkeypatch, handlers
):
    left = []
    assert started(monkeypatch, lambda *_: 7, left) == 7 and left == [False]
    assert started(monkeypatch, lambda *_: 0, left, elsewhere=lambda values: True) == 0 and left == [False, True]
    assert started(monkeypatch, lambda *_: signal.raise_signal(signal.SIGTERM)) == 143
    values = flags.FlagValues()
    assert not main.on_a_pool(values)
    definitions.define_common(values)
    for arguments, pooled in ((["x"], False), (["x", "--pool=local"], False), (["x", "--pool=ray"], True)):
        values(arguments)
        assert main.on_a_pool(values) is pooled


COMMON = {
    "workdir": None, "dataset": "cifar10", "data_dir": None, "train_examples": None, "model": "wrn-16-2", "optimizer": "sgd",
    "learning_rates": ["0.1"], "weight_decay": 0.001, "batch_size": 128, "epochs": 20, "schedule": "paper",
    "compute_dtype": "float32", "slots": None, "pool": "local", "ray_address": None, "workers": None, "worker_cpus": None,
    "seed": 0, "max_hours": None, "metrics": None, "selfcheck": True,
}  # fmt: skip
OF_SEARCH = {
    "checkpoint_minutes": 10.0, "controller": "paper", "max_evaluations": 1000, "fitness_over": "worst", "max_parts": 3,
    "elite_size": None, "elite_probability": 0.7, "tournament": 10, "mutations": ["1"], "initial": "random", "operands": [],
    "unaries": [], "binaries": [], "lag": None, "stop_epochs": [], "stop_quantile": 0.5, "halving_eta": 0, "equivalence": True,
    "top": 5, "repeats": 5, "fork_from": None,
}  # fmt: skip
OF_EVALUATION = {
    "scenario": "evaluation", "rules": None, "top": 100, "finalists": 10, "tuning_repeats": 1, "selection_repeats": 5,
    "repeats": 10, "eval_examples": None, "ablate": 0, "alignment": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "defined, expected",
    [
        (["common", "search"], COMMON | OF_SEARCH),
        (["common", "search", "sweep"], COMMON | OF_SEARCH | {"vary": []}),
        (["common", "evaluation"], COMMON | OF_EVALUATION),
        (["common", "evaluation", "funnel"], COMMON | OF_EVALUATION | {"stages": None, "scenario": "funnel"}),
    ],
    ids=["launch", "sweep", "evaluate", "funnel"],
)
def test_the_defaults_of_a_commands_flags(defined, expected):
    values = flags.FlagValues()
    for name in defined:
        getattr(definitions, f"define_{name}")(values)
    assert {name: values[name].default for name in values} == expected


# Commands of their own.


def command(name: str, argument: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", f"bpevo.{name}", argument]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", ["launch", "evaluate", "report", "doctor", "bench"])
def test_help_is_no_error(name):
    asked = command(name, "--help")
    assert asked.returncode == 0 and "--" in asked.stdout and not asked.stderr


@pytest.mark.parametrize("name", ["report", "bench"])
def test_a_stray_argument_is_an_error_of_one_line(name):
    stray = command(name, "stray")
    assert stray.returncode == 2
    assert stray.stderr == f"bpevo.{name}: unknown argument 'stray': settings are flags, --name=value\n"


# In this process.


def test_a_search_that_has_drawn_nothing_has_no_shares(monkeypatch):
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    watch = Progress(Console(file=io.StringIO(), width=70))
    clock.now += 36
    told = watch._told(watched(proposals=[], infeasible=0, duplicates=0, done=0))
    assert told["draws"] == "0 drawn, 0% infeasible, 0% duplicate" and told["time left"] == ""
    assert watch._told(watched(proposals=[], infeasible=1, duplicates=0))["draws"].startswith(
        "0 drawn, 100% infeasible"
    )


def numbered(*numbers: str, text: str = "abcde", head: str = "rule", columns: str = "ab") -> TextTable:
    return TextTable("title", head, columns, [Line(text, numbers)])


@pytest.mark.parametrize(
    "shown, width",
    [
        # Numbers, two blanks in each column, a border at each side of one; then the text, up to 24 of it, or its head.
        (numbered("123", text="abcde", columns="a"), 3 + 4 + 3 + 5),
        (numbered("123", text="a" * 24, columns="a"), 3 + 4 + 3 + 24),
        (numbered("123", text="a" * 30, columns="a"), 3 + 4 + 3 + 24),
        (numbered("1", text="a", columns=["a column"], head="equation"), 8 + 4 + 3 + 8),
        (numbered("1", "22", "333", text="abcde", columns="abc"), 6 + 8 + 5 + 5),
        (TextTable("title", "rule", "a", []), 1 + 4 + 3 + 4),
    ],
)
def test_a_text_stands_beside_its_numbers_where_there_is_room_to_the_character(shown, width):
    assert any("┃" in line for line in printed(shown, width)) and not any(
        "┃" in line for line in printed(shown, width - 1)
    )


def test_numbers_below_a_text_fill_a_line_to_its_last_character():
    shown = numbered("12345", "67890")
    assert printed(shown, 18) == ["title", "abcde", "  a 12345  b 67890"]
    assert printed(shown, 17) == ["title", "abcde", "  a 12345", "  b 67890"]
    assert printed(numbered("", "6", text="a rule that is long"), 19) == ["title", "a rule that is long", "  b 6"]
    assert printed(numbered("", "", text="a rule that is long"), 19) == ["title", "a rule that is long", "  "]


def test_a_line_keeps_its_style_beside_its_numbers_and_below():
    shown = TextTable("title", "rule", "a", [Line("bold one", ["1"], "bold"), Line("[red]plain", ["[b]2"])])
    console = Console(file=io.StringIO(), width=30, force_terminal=True, color_system="standard")
    console.print(shown)
    beside = console.file.getvalue()
    assert "\x1b[1mbold one" in beside and "[red]plain" in beside and "[b]2" in beside
    below = [(text.plain, text.style) for text in shown._below(12)]
    assert below == [
        ("title", "italic"),
        ("bold one", "bold"),
        ("  a 1", "dim"),
        ("[red]plain", ""),
        ("  a [b]2", "dim"),
    ]
