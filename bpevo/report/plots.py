"""The plots, each a matplotlib Figure of one run's or one evaluation's rows. None where there is nothing to show."""

import datetime
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bpevo.evaluation.early_decisions import EarlyDecisions
from bpevo.evaluation.significance import Summary, summary
from bpevo.evaluation.standings import Standing, name_of
from bpevo.report.ancestry import Share
from bpevo.rules import NAMED, parse
from bpevo.runs import Rows, fittest
from bpevo.workers import Stage

TOP, CONTROLS = 5, 2  # rules in one plot, and controls beside backprop and the zero signal
TICKS = 8  # learning rates that find room below an axis
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")


def _figure(columns: int = 1, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(text: str, length: int = 44) -> str:
    """A treatment's text is data: `$` would start mathtext."""
    text = name_of(text) or text
    short = text if len(text) <= length else text[: length - 1] + "…"
    return short.replace("$", r"\$")


def _legend(figure: Figure, axis: Axes) -> None:
    """Below the axes, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if max(map(len, labels)) > 20 else 4
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="x-small", frameon=False)


def _counts(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _epochs(axis: Axes, count: int) -> np.ndarray:
    axis.set_xlabel("epoch")
    _counts(axis.xaxis)
    return np.arange(1, count + 1)


def _within(low: float, high: float, limits: tuple[float, float]) -> tuple[float, float]:
    """An axis ends where values do: its limits, once everything is drawn, without the margin beyond `low` and `high`."""
    return max(low, limits[0]), min(high, limits[1])


def _interval(s: Summary) -> tuple[float, float]:
    """The 95 % interval of a mean accuracy, as far as there are such accuracies; the mean alone where n is 1."""
    margin = 0.0 if s.n < 2 else s.margin
    return max(0.0, s.mean - margin), min(100.0, s.mean + margin)


def _mark_controls(rows: Rows, line: Callable[..., object]) -> None:
    """Where a search's backprop and zero signal ended, at their best; `line` draws across the axes."""
    best = fittest(rows.of(stage=Stage.CONTROL))
    for name, style in (("backprop", "--"), ("zero_signal", ":")):
        if row := best.get(str(parse(NAMED[name]))):
            line(100 * (row.accuracy or 0.0), color="black", linestyle=style, linewidth=1, label=name)


def best_so_far(rows: Rows) -> Figure | None:
    """The search's best validation accuracy against trainings and against wall time (pauses included)."""
    search = rows.of(stage=Stage.SEARCH, network="")
    if not search:
        return None
    best = np.maximum.accumulate([100 * (e.accuracy or 0.0) for e in search])
    times = [datetime.datetime.fromisoformat(e.finished) for e in search]
    seconds = np.array([(t - min(times)).total_seconds() for t in times])
    length, unit = next(
        u for u in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if seconds.max() > 2 * u[0] or u[0] == 1
    )
    figure, axes = _figure(2)
    for axis, x, name in zip(axes, (np.arange(1, len(best) + 1), seconds / length), ("trainings", unit), strict=True):
        axis.step(x, best, where="post", color=_COLOURS[0], label="best so far")
        _mark_controls(rows, axis.axhline)
        axis.set_xlabel(name)
        axis.set_ylim(_within(0, 100, axis.get_ylim()))
    _counts(axes[0].xaxis)
    axes[0].set_ylabel("validation accuracy, %")
    _legend(figure, axes[0])
    return figure


def distribution(rows: Rows) -> Figure | None:
    """Final validation accuracies of the search's trainings."""
    search = rows.of(stage=Stage.SEARCH, network="")
    scores = [100 * e.accuracy for e in search if e.accuracy is not None]
    if not scores:
        return None
    figure, (axis,) = _figure()
    low, high = min(scores), max(scores)
    bounds = (low, high) if low < high else (max(0.0, low - 0.5), min(100.0, low + 0.5))
    axis.hist(scores, bins=40, range=bounds, color=_COLOURS[0])
    _mark_controls(rows, axis.axvline)
    axis.set(xlabel="validation accuracy, %", ylabel="trainings", xlim=_within(0, 100, axis.get_xlim()))
    _counts(axis.yaxis)
    axis.set_title(f"{len(scores)} trainings; {len(search) - len(scores)} more diverged", fontsize="small")
    _legend(figure, axis)
    return figure


def enrichment(shares: Sequence[Share], winners: int, population: int) -> Figure | None:
    """Components of the winners against those of all proposals."""
    if not shares:
        return None
    figure, (axis,) = _figure(height=0.5 + 0.32 * len(shares))
    places = np.arange(len(shares))[::-1]
    axis.barh(places + 0.2, [100 * s.winners for s in shares], 0.4, color=_COLOURS[1], label=f"{winners} best")
    axis.barh(places - 0.2, [100 * s.population for s in shares], 0.4, color=_COLOURS[7], label=f"all {population}")
    axis.set_yticks(places, [s.component for s in shares], fontsize="small")
    axis.set(xlabel="equations that use it, %", xlim=_within(0, 100, axis.get_xlim()))
    _legend(figure, axis)
    return figure


def chosen(standings: Sequence[Standing]) -> list[Standing]:
    """What plots show: backprop, the zero signal, the best of the other controls and the best rules."""
    alive = [s for s in standings if s.learning_rate is not None]
    named = [s for s in alive if s.role == "control" and s.name]
    others = [s for s in alive if s.role == "control" and not s.name]
    return named + others[:CONTROLS] + [s for s in alive if s.role != "control"][:TOP]


def _styles(standings: Sequence[Standing]) -> dict[str, dict]:
    colours, dashes, styles = iter(_COLOURS), iter(("--", "-.")), {}
    for s in chosen(standings):
        if s.role == "control":
            dash = {"backprop": "-", "zero_signal": ":"}.get(s.name) or next(dashes)
            styles[s.text] = {"color": "black", "linestyle": dash, "linewidth": 1}
        else:
            styles[s.text] = {"color": next(colours), "linewidth": 1.5}
    return styles


def learning_curves(rows: Rows, standings: Sequence[Standing]) -> Figure | None:
    """Test accuracy after each epoch, mean and 95 % interval over seeds. Nothing was chosen by it."""
    figure, (axis,) = _figure(height=4)
    styles, rates = _styles(standings), {s.text: s.learning_rate for s in standings}
    for text, style in styles.items():
        curves = [
            [100 * (v or 0.0) for v in e.curve["eval_accuracy"]]
            for e in rows.of(stage=Stage.TEST, equation=text, learning_rate=rates[text], status="done")
        ]
        if not curves:
            continue
        summaries = [summary(values) for values in zip(*curves, strict=True)]
        epochs = _epochs(axis, len(summaries))
        marker = "o" if len(epochs) == 1 else ""  # a line through one point cannot be seen
        axis.plot(epochs, [s.mean for s in summaries], label=_label(text), marker=marker, **style)
        if len(curves) > 1:
            lower, upper = zip(*map(_interval, summaries), strict=True)
            axis.fill_between(epochs, lower, upper, color=style["color"], alpha=0.12)
    if not axis.lines:
        return None
    axis.set(ylabel="test accuracy, %", ylim=_within(0, 100, axis.get_ylim()))
    _legend(figure, axis)
    return figure


def learning_rates(standings: Sequence[Standing]) -> Figure | None:
    """Validation accuracy of the tuning against the learning rate; a training that diverged counts as 0.

    The tuned rate has a large dot, an open one where it lies at the edge.
    """
    figure, (axis,) = _figure(height=4)
    styles = _styles(standings)
    shown = [s for s in standings if s.text in styles]
    for s in shown:
        x, y = list(s.tuning), list(s.tuning.values())
        axis.plot(x, y, marker="o", markersize=3, label=_label(s.text), **styles[s.text])
        if s.learning_rate is not None and s.validation is not None:
            colour = styles[s.text]["color"]
            face = "white" if s.at_edge else colour
            axis.plot([s.learning_rate], [s.validation], marker="o", markersize=7, color=colour, markerfacecolor=face)
    if not axis.lines:
        return None
    axis.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy, %")
    axis.set_ylim(_within(0, 100, axis.get_ylim()))
    rates = sorted({rate for s in shown for rate in s.tuning})
    if len(rates) <= TICKS:
        axis.set_xticks(rates, [f"{r:g}" for r in rates])
        axis.minorticks_off()
    _legend(figure, axis)
    return figure


def ablation(rows: Rows, whole: str, parts: Sequence[str]) -> Figure | None:
    """Validation accuracy of a rule and of what is left without one component, each at its own tuned rate."""
    values = {
        text: [100 * (e.accuracy or 0.0) for e in rows.of(stage=Stage.ABLATION, equation=text)]
        for text in (whole, *parts)
    }
    shown = {text: summary(v) for text, v in values.items() if v}
    if len(shown) < 2 or whole not in shown:
        return None
    figure, (axis,) = _figure(height=0.8 + 0.36 * len(shown))
    places = np.arange(len(shown))[::-1]
    for i, s in enumerate(shown.values()):
        lower, upper = _interval(s)
        sides = [[s.mean - lower], [upper - s.mean]]
        axis.errorbar(s.mean, places[i], xerr=sides, color=_COLOURS[0 if i else 1], marker="o", capsize=3)
    axis.set_yticks(places, [_label(text, 36) for text in shown], fontsize="small")
    axis.set_xlabel("validation accuracy, % (mean and 95 % interval)")
    axis.set_xlim(_within(0, 100, axis.get_xlim()))
    return figure


def alignment(rows: Rows, standing: Standing) -> Figure | None:
    """Cosine and norm ratio of the evolved and the true signal in each unit over training, mean over seeds."""
    curves = [
        e.curve
        for e in rows.of(stage=Stage.TEST, equation=standing.text, learning_rate=standing.learning_rate, status="done")
    ]
    units = [name.split(" ", 1)[1] for name in (curves[0] if curves else ()) if name.startswith("cosine ")]
    if not units:
        return None
    figure, axes = _figure(2)
    for axis, name in zip(axes, ("cosine", "norm_ratio"), strict=True):
        for i, unit in enumerate(units):
            values = np.array([[v if v is not None else np.nan for v in c[f"{name} {unit}"]] for c in curves])
            # Bottom units dark, top ones light.
            colour = (0.0, 0.15 + 0.7 * i / max(1, len(units) - 1), 0.55)
            axis.plot(_epochs(axis, values.shape[1]), values.mean(0), color=colour, linewidth=1, label=_label(unit))
        axis.set_title(name.replace("_", " "))
    axes[0].set_ylim(-1, 1)
    if all(np.all(np.asarray(line.get_ydata(), float) > 0) for line in axes[1].lines):
        axes[1].set_yscale("log")
    _legend(figure, axes[1])
    return figure


def early_decisions(found: Sequence[EarlyDecisions]) -> Figure | None:
    """Rank correlation of each epoch's accuracy with the last one's over configurations."""
    if not found:
        return None
    figure, (axis,) = _figure()
    for i, decisions in enumerate(found):
        epochs = _epochs(axis, len(decisions.correlations))
        axis.plot(
            epochs,
            decisions.correlations,
            marker="o",
            markersize=3,
            label=_label(decisions.text),
            color=_COLOURS[i % 8],
        )
    axis.set(ylabel="rank correlation with the last", ylim=_within(-1, 1, axis.get_ylim()))
    _legend(figure, axis)
    return figure
