"""Writes the report of a workdir: report.html, table.md, table.tex, and each plot as SVG and PNG."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from bpevo.evaluation.ablation import ablations
from bpevo.evaluation.early_decisions import DRAWS, POOL, early_decisions
from bpevo.evaluation.standings import Standing, standings
from bpevo.evaluation.treatments import stored
from bpevo.evaluation.verdict import verdict
from bpevo.evolution import Proposal
from bpevo.report import ancestry, drawing, page, plots
from bpevo.report.front import front
from bpevo.report.leaderboard import leaderboard, remarks
from bpevo.report.overview import best_found
from bpevo.report.tables import LEGEND, code, latex, latex_text, markdown
from bpevo.runs import Rows, RunDatabase, RunError, networks, provenance, ranked
from bpevo.search import CONTROL_KEYS
from bpevo.workers import Stage

LEADERS, LINEAGES = 10, 3  # rules that the leaderboard shows, and those whose lineage is traced
WINNERS = 0.1  # share of a search's rules that count as winners
MIN_WINNERS = 5
DRAWN = 3  # best rules of an evaluation that have a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All that a database holds. A search has proposals, an evaluation a scenario."""

    name: str
    settings: dict[str, Any]
    versions: dict[str, str]
    first_versions: dict[str, str]
    rows: Rows
    proposals: list[Proposal]

    @property
    def is_evaluation(self) -> bool:
        return "scenario" in self.settings


def read_runs(workdir: str | os.PathLike) -> list[Run]:
    """The workdir's own run and the evaluations in its folders, in order of their names; where it has none, as that of a sweep,
    the searches in its folders too. Raises RunError if there is none."""
    folder = pathlib.Path(workdir)
    inside = sorted(p.parent for p in folder.glob("*/run.sqlite"))
    folders = ([folder] if (folder / "run.sqlite").is_file() else []) + inside
    if not folders:
        raise RunError(
            f"there is no run in {folder}: start one with python -m bpevo.launch or python -m bpevo.evaluate"
        )
    runs = []
    for each in folders:
        with RunDatabase.reading(each) as database:
            settings = database.settings()
            if each != folder == folders[0] and "scenario" not in settings:
                continue  # another search
            runs.append(
                Run(
                    name=_name(each),
                    settings=settings,
                    versions=database.versions(),
                    first_versions=database.first_versions(),
                    rows=database.rows() if "scenario" in settings else database.judged(),
                    proposals=database.proposals(),
                )
            )
    return runs


class Report:
    """Collects sections, tables and plots; `write` puts them into a folder."""

    def __init__(self, title: str, every: float | None = None):
        self._title, self._every = title, every
        self._sections: list[str] = [page.heading(1, title)]
        self._images: dict[str, bytes] = {}
        self._markdown: list[str] = []
        self._latex: list[str] = []

    def _add(self, *html: str) -> None:
        self._sections += [h for h in html if h]

    def _plot(self, name: str, figure: Figure | None, caption: str) -> None:
        if figure is not None:
            image = drawing.svg(figure)
            self._images |= {f"{name}.svg": image, f"{name}.png": drawing.png(figure)}
            self._add(page.picture(image, caption))

    def add_overview(self, searches: Sequence[Run]) -> None:
        rows = [best_found(run.name, run.rows, run.settings, LEADERS) for run in searches]
        self._add(page.heading(2, f"{len(rows)} searches"), page.overview_html(rows))

    def add_search(self, run: Run, prefix: str = "") -> None:
        """`prefix`: of its plots' names."""
        s, stages = run.settings, collections.Counter(row.stage for row in run.rows.trainings)
        board = leaderboard(run.rows, LEADERS, s.get("learning_rates", ()), networks(s))
        held_out = s.get("held_out", 0)
        confirmations = sum(p.confirms is not None for p in run.proposals)
        trials = f"{stages[Stage.TRIAL]} trials of {s.get('trial_epochs')} epochs, " if stages[Stage.TRIAL] else ""
        self._add(
            page.heading(2, f"Search {run.name}"),
            page.note(_describe(run)),
            page.paragraph(
                f"{len(run.proposals) - confirmations} equations: {trials}{stages[Stage.SEARCH]} trainings and "
                f"{stages[Stage.CONFIRMATION]} confirmations on another seed; {stages[Stage.CONTROL]} trainings of controls; "
                f"{run.rows.slot_epochs:,} slot-epochs in all."
            ),
            page.leaderboard_html(board),
            page.listing(remarks(board, held_out, s.get("validation_examples", 0) - held_out)),
            page.front_html(front(run.rows)),
        )
        self._plot(f"{prefix}search_best", plots.best_so_far(run.rows), "Best validation accuracy so far")
        self._plot(f"{prefix}search_scores", plots.distribution(run.rows), "Distribution of validation accuracies")
        found = list(ranked(run.rows.of(stage=Stage.SEARCH), CONTROL_KEYS))
        by_id = {p.id: p for p in run.proposals}
        best = found[: max(MIN_WINNERS, int(WINNERS * len(found)))]
        winners = [by_id[row.proposal] for row in best if row.proposal in by_id]
        leaders = [by_id[row.proposal] for row in board if row.proposal in by_id]
        equations = [p for p in run.proposals if p.confirms is None]
        figure = plots.enrichment(ancestry.shares(equations, winners), len(winners), len(equations))
        self._plot(f"{prefix}search_components", figure, "Components of the best rules against the whole population")
        for leader in leaders[:LINEAGES]:
            line = ancestry.lineage(run.proposals, run.rows, leader)
            text = line[-1].equation
            self._add(page.heading(3, f"Lineage of {text}"), page.lineage_html(line), page.rule(text))

    def add_evaluation(self, run: Run) -> None:
        table = standings(run.rows, run.settings)
        name, sentences = run.name, verdict(table)
        self._add(page.heading(2, f"Evaluation {name}"), page.note(_describe(run)), page.listing(sentences))
        best = [row.text for row in table if row.role != "control"][:DRAWN]
        self._add(page.standings_html(table), *map(page.rule, best))
        self._markdown.append(
            f"## {name}\n\n{_describe(run)}\n\n"
            + "".join(f"- {s}\n" for s in sentences)
            + f"\n{markdown(table)}\n{LEGEND}\n"
        )
        self._latex.append(f"% {latex_text(name)}: {latex_text(_describe(run))}\n{latex(table)}")
        self._plot(
            f"{name}_curves",
            plots.learning_curves(run.rows, table),
            "Learning curves: test accuracy, mean and 95 % interval over seeds; nothing was chosen by them",
        )
        self._plot(
            f"{name}_learning_rates",
            plots.learning_rates(table),
            "Validation accuracy against the learning rate",
        )
        self._ablations(run)
        self._alignments(run, table)
        self._early_decisions(run, table)

    def _ablations(self, run: Run) -> None:
        trained = {e.equation for e in run.rows.of(stage=Stage.ABLATION)}
        candidates = [*run.settings.get("rules", ()), *run.settings.get("found", ())]
        wholes = [(text, stored(text)) for text in candidates if text in trained]
        parts = [(text, [str(p) for p in ablations(whole)]) for text, whole in wholes if whole]
        for i, (text, left) in enumerate((text, left) for text, left in parts if trained & set(left)):
            caption = f"{text} and what is left of it without one component, each at its own tuned learning rate"
            self._plot(f"{run.name}_ablation_{i}", plots.ablation(run.rows, text, left), caption)

    def _alignments(self, run: Run, table: list[Standing]) -> None:
        for i, row in enumerate([r for r in plots.chosen(table) if r.role != "control"][:3]):
            caption = (
                f"{row.text}: cosine and norm ratio of its signal and the true one in each unit, dark at the bottom of the "
                "network"
            )
            self._plot(f"{run.name}_alignment_{i}", plots.alignment(run.rows, row), caption)

    def _early_decisions(self, run: Run, table: list[Standing]) -> None:
        found = [d for d in (early_decisions(run.rows, r.text) for r in table) if d]
        if found:
            self._add(page.heading(3, "Early decisions"))
            self._plot(
                f"{run.name}_early",
                plots.early_decisions(found),
                "Rank correlation over configurations (learning rate and seed) of early and last validation accuracy",
            )
            said = (
                f"Successive halving on {DRAWS:,} random pools of {POOL} configurations: mean final validation accuracy of "
                "the pool's best and of the one it picks, and the share of the pool's epochs it trains."
            )
            self._add(page.early_decisions_html(found), page.note(said))
            lines = [
                f"| {code(d.text)} | {d.n} | {' '.join(f'{c:.2f}' for c in d.correlations)} | {d.best:.2f} | {d.picked:.2f} "
                f"| {d.regret:.2f} | {d.spent:.0%} |\n"
                for d in found
            ]
            self._markdown.append(
                f"### Early decisions in {run.name}\n\n{said}\n\n| rule | configurations | rank correlation by epoch | best % "
                "| picked % | regret | epochs |\n|---|---:|---|---:|---:|---:|---:|\n" + "".join(lines)
            )

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"report.html": page.page(self._title, self._sections, self._every)}
        if self._markdown:
            texts |= {"table.md": "\n".join(self._markdown), "table.tex": "\n".join(self._latex)}
        for name, content in ({n: t.encode("utf-8", "replace") for n, t in texts.items()} | self._images).items():
            path = folder / os.fsdecode(name.encode())
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.write_bytes(content)
            os.replace(unfinished, path)  # whoever reads meanwhile sees the old file or the new one
        return [folder / name for name in texts]


def build(workdir: str | os.PathLike, every: float | None = None) -> list[pathlib.Path]:
    """Reads the runs of `workdir` and writes `<workdir>/report`. Works while they are running.

    With `every`, the page in a browser loads itself again after so many seconds. Raises RunError.
    """
    folder = pathlib.Path(workdir)
    report = Report(f"bpevo: {_name(folder)}", every)
    with drawing.fixed_style():
        runs = read_runs(folder)
        searches = [run for run in runs if not run.is_evaluation and run.proposals]
        if len(searches) > 1:
            report.add_overview(searches)
        for run in runs:
            if run.is_evaluation:
                report.add_evaluation(run)
            elif run in searches:
                report.add_search(run, f"{run.name}_" if len(searches) > 1 else "")
    try:
        return report.write(folder / "report")
    except OSError as error:
        raise RunError(f"cannot write {folder / 'report'}: {error.strerror}") from error


def _name(folder: pathlib.Path) -> str:
    """A folder's name as text, also where Python takes names for ASCII, or they are no UTF-8."""
    return os.fsencode(folder.resolve().name).decode("utf-8", "replace")


def _describe(run: Run) -> str:
    """Settings and versions in a line."""
    s, v = run.settings, run.versions
    shown = {
        "": s.get("model"), "on": s.get("dataset"), "with": s.get("optimizer"), "epochs": s.get("epochs"),
        "batch": s.get("batch_size"), "training examples": s.get("train_examples"), "weight decay": s.get("weight_decay"),
        "learning rates": ", ".join(f"{r:g}" for r in s.get("learning_rates", ())), "seed": s.get("seed"),
    }  # fmt: skip
    settings = "; ".join(f"{name} {value}".strip() for name, value in shown.items() if value not in (None, ""))
    changed = provenance.changed_numerics(run.first_versions, v)
    return f"{settings}. {', '.join(f'{name} {version}' for name, version in v.items() if version)}" + (
        f"; it began with others: {changed}" if changed else ""
    )
