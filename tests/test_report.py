"""The report: its numbers, its files, texts that must stay texts, and the page in a browser."""

import base64
import dataclasses
import html.parser
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from test_evaluate import PLAN, RULES, Places, evaluate
from test_faults import mounted
from test_figures import EVALUATION, SETTINGS
from test_runs import REPOSITORY, RUNGS, StandIn, plan, python, search

from bpevo.evaluation import early_decisions
from bpevo.evaluation.standings import standings
from bpevo.report import ancestry, page, tables
from bpevo.report.build import build, read_runs
from bpevo.rules import BINARIES, NAMED, OPERANDS, UNARIES, parse
from bpevo.runs import Rows, RunDatabase, RunError

LONG = "(unit_col2(sgn_W) @ b_next.T).T * (dh - 0.01)"
HOSTILE = """<script>document.title="owned"</script><img src=x onerror="document.title='owned'">"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A search and two evaluations on stand-ins, one of them with alignments, with hostile texts wherever one can be."""
    folder = tmp_path_factory.mktemp("reported")
    search(folder, plan(120, (0.1, 0.3), rungs=RUNGS), StandIn(4))
    evaluate(folder / "a1", PLAN)
    with pytest.MonkeyPatch.context() as patch:
        original = StandIn.advance
        aligned = {"Conv_1": (0.9, 2.0), "Dense_0": (0.5, 3.0)}

        def advance(self, meanwhile=lambda: None):
            return {slot: dataclasses.replace(r, alignment=aligned) for slot, r in original(self, meanwhile).items()}

        patch.setattr(StandIn, "advance", advance)
        evaluate(folder / "b1_momentum", dataclasses.replace(PLAN, tuning_repeats=5), Places())
    with RunDatabase.writing(folder / "a1") as database:
        settings = database.settings() | {"model": HOSTILE, "rules": [*map(str, RULES), HOSTILE]}
        database.check_settings(settings, {"jax": HOSTILE}, ("model", "rules"))
        first = database.rows("tuning")[0]
        database._connection.execute(
            "INSERT INTO evaluations SELECT stage, ?, learning_rate, replicate, proposal, status, ?, accuracy, rungs, curve, "
            "seconds, finished FROM evaluations WHERE rowid = 1",
            (HOSTILE, HOSTILE),
        )
        assert first.stage == "tuning"
    return folder


@pytest.fixture(scope="module")
def report(workdir) -> pathlib.Path:
    build(workdir)
    return workdir / "report"


class Page(html.parser.HTMLParser):
    """Collects tags and addresses; raises where a tag is closed that is not open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.text, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "xlink:href")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_hostile_texts_stay_texts(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert text.count("<h1>") == 1
    assert "script" not in parsed.tags and all(a.startswith("data:") for a in parsed.addresses)
    assert len(parsed.addresses) > 20 and 'name="viewport"' in text
    assert not re.search(r"url\(|@import", text)
    assert HOSTILE in "".join(parsed.text)  # shown, as text
    for address in parsed.addresses:
        if address.startswith("data:image/svg+xml;base64,"):
            image = base64.b64decode(address.split(",", 1)[1]).decode()
            assert "<script" not in image and "onerror=" not in image.replace("&", "")


def test_the_best_rules_are_drawn_in_the_page():
    drawn = page.rule("unit_fro(g) | clip_global_norm")
    assert f"data:image/svg+xml;base64,{base64.b64encode(parse('unit_fro(g)').draw().svg.encode()).decode()}" in drawn
    assert page.rule("no rule at all") == ""


def test_every_plot_is_there_as_svg_and_png(report):
    plots = {p.stem for p in report.glob("*.svg")}
    expected = {"search_best", "search_scores", "search_components"}
    for name in ("a1", "b1_momentum"):
        expected |= {f"{name}_curves", f"{name}_learning_rates", f"{name}_ablation_0"}
    expected |= {"b1_momentum_alignment_0", "b1_momentum_early"}
    assert expected <= plots and plots == {p.stem for p in report.glob("*.png")}
    assert not [p for p in plots if p.startswith("a1_alignment")]
    aligned = re.findall(r'alt="([^:"]+): cosine', (report / "report.html").read_text("utf-8"))
    assert aligned == ["min(g, h)", "(0.5*g) + fa", "mul_noise(g, 0.1)"]  # the best three that are no controls


def test_a_search_draws_its_best_rule_and_an_evaluation_its_best_three(report):
    assert (report / "report.html").read_text(encoding="utf-8").count('<figure class="rule">') > 1


def test_the_same_rows_give_the_same_bytes(report, workdir):
    before = {p.name: p.read_bytes() for p in report.iterdir()}
    build(workdir)
    assert {p.name: p.read_bytes() for p in report.iterdir()} == before


def test_tables_hold_every_row_and_only_significant_ones_are_bold(report, workdir):
    markdown, latex = ((report / name).read_text(encoding="utf-8") for name in ("table.md", "table.tex"))
    run = next(r for r in read_runs(workdir) if r.name == "b1_momentum")
    rows = standings(run.rows, run.settings)
    assert len(rows) == len(PLAN.treatments)
    for row in rows:
        assert "`" + row.text.replace("|", r"\|") + "`" in markdown
    lines = [line for line in tables.markdown(rows).splitlines()[2:]]
    assert [line.startswith("| **") for line in lines] == [r.find for r in rows]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(tables.COLUMNS) + 1 for line in lines)
    body = [line for line in tables.latex(rows).splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(tables.COLUMNS) - 1 for line in body)
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    assert [r"\textbf" in line for line in body[1:]] == [r.find for r in rows]


def test_a_significant_row_is_bold_in_all_forms(workdir):
    run = next(r for r in read_runs(workdir) if r.name == "b1_momentum")
    rows = Rows(
        e
        if e.stage == "tuning"
        else dataclasses.replace(
            e, accuracy=0.5 + 0.01 * (e.replicate % 7) + (e.equation == "fa") * (0.2 + 0.001 * (e.replicate % 3))
        )
        for e in run.rows
    )  # fmt: skip
    table = standings(rows, run.settings)
    finds = [r.text for r in table if r.find]
    assert finds == ["fa"] and "| **`fa`** |" in tables.markdown(table) and r"\textbf{+2" in tables.latex(table)
    assert '<tr class="find">' in page.standings_html(table)


def test_every_component_and_named_rule_becomes_an_image_of_its_equation():
    texts = [*NAMED.values(), *(f"{o} + 0.1" for o in OPERANDS if parse_or_none(f"{o} + 0.1"))]
    texts += [u.spelling.format(x="g", c="0.5") for u in UNARIES.values() if u.structure != "transpose"]
    texts += [b.spelling.format(x="g", y="h") for b in BINARIES.values() if b.name != "matmul"]
    texts += ["(sgn_W.T.T @ b_next.T).T", "whiten(b_L @ R_L)", "mean(g) + g", "g + std(g)", "bn(g)"]
    for text in texts:
        assert '<img class="equation"' in page.equation(text), text
    assert page.equation(HOSTILE) == f"<code>{page.html.escape(HOSTILE)}</code>"


def parse_or_none(text: str):
    try:
        return parse(text)
    except ValueError:
        return None


def test_latex_never_has_a_second_superscript():
    for text in ("(b_next @ W.T.T.T) * dh", "(W @ b_next.T).T", "whiten(g)", "(unit_col2(sgn_W) @ b_next.T).T * dh"):
        assert not re.search(r"\^(\w|\{[^}]*\}|\\\w+)\^", parse(text).latex), parse(text).latex


def test_a_report_of_nothing_says_what_to_start(tmp_path):
    with pytest.raises(RunError, match="there is no run in .*bpevo.launch or python -m bpevo.evaluate"):
        build(tmp_path)


def test_the_command_writes_the_report_also_while_a_run_is_being_written(workdir):
    with RunDatabase.writing(workdir / "a1"):
        process = python(
            "import sys; sys.argv[0] = 'report'; import runpy; runpy.run_module('bpevo.report', run_name='__main__')",
            f"--workdir={workdir}",
        )
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and str(workdir / "report" / "report.html") in output


def test_a_report_that_is_written_again_and_again_reloads_itself_until_it_is_stopped(workdir, tmp_path):
    shutil.copytree(workdir / "a1", tmp_path / "run" / "a1")
    written_page = tmp_path / "run" / "report" / "report.html"
    process = python(
        "import sys; sys.argv[0] = 'report'; import runpy; runpy.run_module('bpevo.report', run_name='__main__')",
        f"--workdir={tmp_path / 'run'}", "--every=1",
    )  # fmt: skip
    try:
        written, deadline = set(), time.monotonic() + 120
        while len(written) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
            if written_page.exists():
                written.add(written_page.stat().st_mtime_ns)
        assert len(written) == 2
        meanwhile = written_page.read_text(encoding="utf-8")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    last = written_page.read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh" content="1">' in meanwhile and "refresh" not in last
    assert meanwhile.endswith("</html>\n") and last.endswith("</html>\n")


# What the page says.


def test_lineages_lead_from_an_initial_equation_to_the_best(workdir):
    run = read_runs(workdir)[0]
    deepest = max(run.proposals, key=lambda p: len(ancestry.lineage(run.proposals, run.rows, p)))
    line = ancestry.lineage(run.proposals, run.rows, deepest)
    assert len(line) > 2 and line[-1].id == deepest.id
    assert run.proposals[line[0].id].parent is None and not line[0].changes
    for parent, child in zip(line, line[1:], strict=False):
        assert run.proposals[child.id].parent == parent.id and child.changes


def test_shares_count_equations_that_use_a_component():
    assert ancestry.components(parse("left(unit_fro(bn(g)), h) + (0.5*g)")) == {
        "add",
        "unit_fro",
        "bn(g)",
        "scale",
        "g",
    }

    class Drawn:
        def __init__(self, text):
            self.equation = parse(text).to_equation(3)

    population = [Drawn(t) for t in ("g", "fa", "unit_fro(g)", "h + g")]
    found = {s.component: (s.winners, s.population) for s in ancestry.shares(population, population[2:3])}
    assert found["unit_fro"] == (1.0, 0.25) and found["g"] == (1.0, 0.75) and found["fa"] == (0.0, 0.25)
    assert ancestry.shares(population, []) == []


def test_rank_correlations_of_known_curves():
    curves = np.array([[0.1, 0.9, 0.2], [0.2, 0.8, 0.4], [0.3, 0.7, 0.6], [0.4, 0.6, 0.8]])
    assert early_decisions.rank_correlations(curves) == pytest.approx((1.0, -1.0, 1.0))
    assert math.isnan(early_decisions.rank_correlations(np.array([[0.5, 0.1], [0.5, 0.2]]))[0])


def test_successive_halving_keeps_the_best_third_at_each_rung():
    """Nine configurations over nine epochs: 9 for one epoch, 3 for three, 1 to the end: 9 + 3·2 + 6 = 21 of 81."""
    curves = np.tile(np.arange(9)[:, None] / 10, (1, 9)).astype(float)
    curves[2, 0] = 0.95  # early best, late poor
    curves[2, 1:] = 0.0
    chosen, spent = early_decisions.successive_halving(curves, np.random.default_rng(0))
    assert (chosen, spent) == (8, 21)
    curves[8, 0] = 0.0  # the best at the end starts last: it is lost
    assert early_decisions.successive_halving(curves, np.random.default_rng(0))[0] == 7


def test_early_decisions_are_exact_where_early_ranks_are_final_and_poor_where_they_mislead(workdir):
    run = next(r for r in read_runs(workdir) if r.name == "b1_momentum")
    sample = next(e for e in run.rows if e.stage == "tuning" and e.status == "done")

    def decisions(curve):
        evaluations = [
            dataclasses.replace(sample, equation="g", replicate=i, learning_rate=0.1 * (1 + i),
                                curve={"eval_accuracy": curve(i)}, accuracy=curve(i)[-1])
            for i in range(12)
        ]  # fmt: skip
        return early_decisions.early_decisions(Rows(evaluations), "g")

    honest, misleading = decisions(lambda i: [i / 20] * 9), decisions(lambda i: [1 - i / 20] * 4 + [i / 20] * 5)
    assert honest.regret == pytest.approx(0) and honest.correlations == pytest.approx([1.0] * 9)
    assert misleading.regret > 20 and misleading.correlations[0] == pytest.approx(-1)
    assert early_decisions.early_decisions(Rows([sample]), sample.equation) is None
    lost = dataclasses.replace(sample, curve={"eval_accuracy": [0.5, 0.4]}, accuracy=None, status="diverged")
    assert early_decisions.final_curves(Rows([lost]), sample.equation).tolist() == [[0.5, 0.0]]


# Settings of the user's, and disks.

HOSTILE_STYLE = """
text.usetex: True
font.family: serif
font.size: 20
mathtext.fontset: stix
svg.fonttype: none
savefig.bbox: tight
savefig.dpi: 30
savefig.facecolor: red
figure.autolayout: True
axes.grid: False
axes.xmargin: 0.4
lines.linewidth: 7
path.sketch: 1, 100, 2
"""


@pytest.fixture(scope="module")
def named(workdir, tmp_path_factory) -> pathlib.Path:
    """An evaluation in folders whose names are no ASCII."""
    return pathlib.Path(shutil.copytree(workdir / "a1", tmp_path_factory.mktemp("names") / "rün ✓" / "größe")).parent


def command(workdir, stdout=subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON", "MPL"))}
    kept |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "LC_ALL": "C.UTF-8"} | environment
    arguments = [sys.executable, "-m", "bpevo.report", f"--workdir={workdir}"]
    return subprocess.run(arguments, env=kept, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=300)


@pytest.mark.slow
def test_neither_the_users_style_nor_a_hash_seed_changes_a_byte(workdir, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(workdir / "a1", folder / "a1")
    shutil.copy(workdir / "run.sqlite", folder)
    (tmp_path / "matplotlibrc").write_text(HOSTILE_STYLE)
    reports = []
    for environment in (
        {"PYTHONHASHSEED": "0"},
        {"PYTHONHASHSEED": "1", "MPLBACKEND": "module://no_such.backend"},
        {"PYTHONHASHSEED": "2", "MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(tmp_path)},
    ):
        done = command(folder, **environment)
        assert done.returncode == 0, done.stderr
        reports.append({p.name: p.read_bytes() for p in (folder / "report").iterdir()})
        shutil.rmtree(folder / "report")
    assert len(reports[0]) > 10 and reports[0] == reports[1] == reports[2]


def test_a_report_in_this_process_neither_obeys_nor_changes_its_style(named):
    import matplotlib

    build(named)
    plain = {p.name: p.read_bytes() for p in (named / "report").iterdir()}
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "savefig.dpi": 30}):
        page.equation.cache_clear()
        build(named)
        assert matplotlib.rcParams["font.size"] == 20 and matplotlib.rcParams["text.usetex"]
    assert {p.name: p.read_bytes() for p in (named / "report").iterdir()} == plain


def test_a_style_file_that_matplotlib_cannot_read_is_one_message(named, tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(b"font.size: 20  # gr\xf6\xdfe\n")
    done = command(named, MATPLOTLIBRC=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(b"bpevo.report: matplotlib cannot be imported: ")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # names of files come as ASCII with escapes
    ],
)
def test_names_and_outputs_that_are_no_ascii_are_no_trouble(named, environment):
    shutil.rmtree(named / "report", ignore_errors=True)
    done = command(named, **environment)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 3, done.stderr
    text = (named / "report" / "report.html").read_text(encoding="utf-8")
    assert "<title>bpevo: rün ✓</title>" in text and "Evaluation größe" in text
    assert (named / "report" / "größe_curves.svg").is_file()


@pytest.mark.slow
def test_a_report_that_finds_no_room_is_one_message_and_leaves_the_run_alone(named, tmp_path):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=600k", "tmpfs") as disk:
        shutil.copytree(named / "größe", disk / "a1")
        done = command(disk)
        assert done.returncode == 2
        assert done.stderr.decode() == f"bpevo.report: cannot write {disk}/report: No space left on device\n"
        with RunDatabase.reading(disk / "a1") as database:
            assert database.rows()
    with open("/dev/full", "wb") as full:
        done = command(named, stdout=full)
    assert (done.returncode, done.stderr) == (0, b"")  # the report is written; only its names could not be printed


def test_a_report_without_a_run_exits_with_2(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b"bpevo.report: there is no run in ")


# In a browser.

ASK = """
const images = [...document.images], box = e => e.getBoundingClientRect(), shown = e => box(e).width > 0 && box(e).height > 0;
const rows = [...document.querySelectorAll("tbody tr")].map(row => [...row.children]);
const filled = rows.map(cells => cells.filter(c => c.textContent));
return {title: document.title, width: document.documentElement.scrollWidth, view: innerWidth,
        broken: images.filter(i => !i.complete || !i.naturalWidth).length, images: images.length,
        requests: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).map(e => e.name),
        cells: filled.flat().length,
        hidden: filled.flat().filter(c => !shown(c) || box(c).left < 0 || box(c).right > innerWidth).map(c => c.textContent),
        cut: filled.flat().filter(c => c.scrollWidth > c.clientWidth + 1).map(c => c.textContent),
        beside: filled.every(([rule, ...others]) => others.every(c => box(c).left >= box(rule).right - 1)),
        below: filled.every(([rule, ...others]) => others.every(c => box(c).top >= box(rule).bottom - 1)),
        heads: [...document.querySelectorAll("th")].filter(shown).length,
        names: filled.flat().map(c => getComputedStyle(c, "::before").content).filter(c => c.includes("test %")).length};
"""


@pytest.fixture
def browser(tmp_path):
    """Opens a file in headless Chromium of a phone's or a desktop's size and asks it ASK."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not on this machine")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    port = None
    for line in process.stdout:
        if found := re.search(r"successfully on port (\d+)", line):
            port = int(found.group(1))
            break

    def call(method: str, path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def ask(path: pathlib.Path, width: int, mobile: bool):
        profile = tmp_path / f"profile-{time.monotonic_ns()}"
        arguments = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                     "disable-component-update", "disable-sync",
                     f"user-data-dir={profile}", f"window-size={width},900"]  # fmt: skip
        options = {"binary": chromium, "args": [f"--{a}" for a in arguments]}
        if mobile:
            options["mobileEmulation"] = {
                "deviceMetrics": {"width": width, "height": 844, "pixelRatio": 2, "mobile": True}
            }
        wanted = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        session = call("POST", "/session", wanted)["sessionId"]
        try:
            call("POST", f"/session/{session}/url", {"url": path.as_uri()})
            answer = call("POST", f"/session/{session}/execute/sync", {"script": ASK, "args": []})
            answer["log"] = call("POST", f"/session/{session}/se/log", {"type": "browser"})
        finally:
            call("DELETE", f"/session/{session}")
        return answer

    yield ask
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    "width, mobile", [(390, True), (800, False), (1280, False)], ids=["phone", "tablet", "desktop"]
)
def test_the_page_is_whole_in_a_browser(browser, report, width, mobile):
    seen = browser(report / "report.html", width, mobile)
    assert seen["title"].startswith("bpevo: reported") and seen["broken"] == 0 and seen["images"] > 20
    assert seen["requests"] == [] and seen["log"] == []
    # Nothing lies outside the window or is cut off: numbers beside their rule on a desktop, else below it and named.
    assert seen["width"] <= seen["view"] and seen["cells"] > 100 and seen["hidden"] == [] and seen["cut"] == []
    assert seen["beside"] == (width == 1280) and seen["below"] == (width < 1280)
    assert bool(seen["heads"]) == (width == 1280) and bool(seen["names"]) == (width < 1280)


def test_a_desktop_cuts_off_no_column_of_the_widest_table(browser, tmp_path):
    """Long rules, every cell filled, several of the paper's numbers."""
    settings = SETTINGS | {"rules": ["fa", "dfa", "sgn(g)", LONG]}
    rows = Rows([*EVALUATION, *(dataclasses.replace(row, equation=LONG) for row in EVALUATION.of(equation="fa"))])
    table = [dataclasses.replace(s, paper="A1 sgd 77.11, A2 sgd 73.10, A3 sgd 92.38, B1 sgd 87.13")
             for s in standings(rows, settings)]  # fmt: skip
    (tmp_path / "wide.html").write_text(page.page("wide", [page.standings_html(table)]), encoding="utf-8")
    seen = browser(tmp_path / "wide.html", 1280, False)
    assert seen["beside"] and seen["cells"] > 50 and seen["hidden"] == [] and seen["cut"] == []
    assert seen["width"] <= seen["view"]
