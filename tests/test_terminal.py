"""What terminals of all widths and kinds show, and what a file gets: on pseudo-terminals, read as their screens would."""

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
import time
import types

import pytest
from rich.cells import cell_len
from rich.console import Console
from test_faults import COMMAND
from test_figures import EVALUATION, SEARCH, SETTINGS, Clock, Tty, watched
from test_ranking import row
from test_runs import StandIn, plan, search

from bpevo.command.process import STOPPING, Output
from bpevo.data.progress import reporter
from bpevo.evaluation import standings
from bpevo.report import Progress, Stages, leaderboard, progress, standings_table, table
from bpevo.report.terminal import Line, TextTable
from bpevo.rules import parse
from bpevo.runs import Rows

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


def test_a_notice_is_taken_only_where_a_display_shows_it():
    plain = Progress(Console(file=io.StringIO()))
    with plain.running():
        assert not plain.notice(STOPPING)


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


def test_a_panel_names_its_facts_and_shows_a_notice_below_them(monkeypatch):
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    console = Console(file=Tty(), width=70, force_terminal=True, color_system=None)
    watch = Progress(console)
    with watch.running():
        assert printed(watch._panel(), 70) == ["stage  compiling the training program"]
        clock.now += 60
        watch(watched(best=None), [row("fa", 0.5)])
        assert watch.notice("wait")
        assert [line.rstrip() for line in printed(watch._panel(), 70)] == [
            "stage        search",
            "evaluations  30 of 60 (60/h)",
            "time left    30.0 min",
            "best",
            "backprop     50.00 % (learning rate 0.4)",
            "failures     4 stopped; 1 loss not finite",
            "draws        15 drawn, 15% infeasible, 10% duplicate",
            "occupancy    88% of slots",
            "             wait",
        ]
    assert not watch.notice("") and "evaluations  30 of 60" in console.file.getvalue()
    assert "stage search, " not in console.file.getvalue()  # no plain line beside the panel


def test_without_a_panel_a_line_comes_when_ten_seconds_are_over_or_a_better_rule_is_there(monkeypatch):
    monkeypatch.setattr(progress, "time", clock := Clock(1.0))
    console = Console(file=io.StringIO(), width=70)
    watch = Progress(console)
    told = []
    for passed, accuracy in (
        (1, None), (1, 0.0), (1, 0.0), (8, 0.0), (1, 0.0), (0.5, 0.5), (0.5, 0.25), (9.75, 0.25), (1, 0.5), (1, 0.75),
    ):  # fmt: skip
        clock.now += passed
        before = len(console.file.getvalue())
        watch(watched(best=None if accuracy is None else (parse("fa").to_equation(3), accuracy)), [])
        told.append(len(console.file.getvalue()) > before)
    # The first; the first rule; …; 10 s after that; a better one; 10.25 s after it; not as good again; better.
    assert told == [True, True, False, False, False, True, False, True, False, True]
    assert console.file.getvalue().startswith(
        "stage search, evaluations 30 of 60 (0/h), backprop"
    )  # no time left is known


def test_a_search_that_has_drawn_nothing_has_no_shares(monkeypatch):
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    watch = Progress(Console(file=io.StringIO(), width=70))
    clock.now += 36
    told = watch._told(watched(proposals=[], infeasible=0, duplicates=0, done=0))
    assert told["draws"] == "0 drawn, 0% infeasible, 0% duplicate" and told["time left"] == ""
    assert watch._told(watched(proposals=[], infeasible=1, duplicates=0))["draws"].startswith(
        "0 drawn, 100% infeasible"
    )


def test_a_notebooks_line_changes_twice_a_second_at_most_and_ends_with_the_last_word(monkeypatch):
    made, replaced = in_notebook(monkeypatch)
    monkeypatch.setattr(progress, "time", clock := Clock(1000.0))
    line = progress.NotebookLine("first")
    for passed, text in ((0.5, "second"), (0.25, "third"), (0.5, "fourth"), (0.25, "fifth")):
        clock.now += passed
        line.show(text)
    assert made == ["first"] and replaced == [(0, "third"), (0, "fifth")]
    line.show("sixth")
    line.catch_up()
    assert replaced[2:] == [(0, "sixth")]


def test_the_lines_of_a_stage_count_its_own_time_and_come_when_ten_seconds_are_over(monkeypatch):
    """The second stage: 2 trainings in 20 s, so 4 more take 40 s."""
    monkeypatch.setattr(progress, "time", clock := Clock(1.0))
    console = Console(file=io.StringIO(), width=70)
    watch = Stages(console)
    watch("tuning", 5, 5, [row("fa", 0.5)] * 5)
    for passed, done, rows in ((5, 0, 0), (5, 0, 0), (15, 2, 2), (9.75, 3, 1), (0.25, 3, 0), (9.5, 4, 1), (0, 6, 2)):
        clock.now += passed
        watch("test", done, 6, [row("dfa", 0.5)] * rows)
    assert console.file.getvalue().splitlines() == [
        "tuning: 5 of 5 trainings; fa",
        "test: 0 of 6 trainings",  # 10 s after the first line
        "test: 2 of 6 trainings, 0.7 min left; dfa",
        "test: 3 of 6 trainings, 0.5 min left",
        "test: 6 of 6 trainings; dfa",
    ]


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
