"""The plots: their values worked out by hand, axes that end where values do, ticks at whole numbers of what is counted."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_figures import EVALUATION, SEARCH, SETTINGS, trained
from test_ranking import row

from bpevo.evaluation import standings
from bpevo.evaluation.early_decisions import EarlyDecisions
from bpevo.evaluation.standings import Standing
from bpevo.report import ancestry, plots
from bpevo.runs import Rows


def whole(ticks) -> bool:
    return all(float(t).is_integer() for t in ticks)


def axes(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    figure.draw_without_rendering()
    return figure.axes


def visible(axis, name: str) -> list[float]:
    low, high = getattr(axis, f"get_{name}lim")()
    return [t for t in getattr(axis, f"get_{name}ticks")() if low <= t <= high]


def test_the_progress_plot_counts_trainings_and_shows_the_best_so_far():
    finished = [f"2026-01-01T00:0{i}:00+00:00" for i in range(4)]
    rows = Rows(
        row(f"fa{i}", a, finished=t) for i, (a, t) in enumerate(zip((0.5, None, 1.0, 0.7), finished, strict=True))
    )
    rows += SEARCH.of(stage="control")
    left, right = axes(plots.best_so_far(rows))
    for axis, x in ((left, [1, 2, 3, 4]), (right, [0, 1, 2, 3])):  # trainings; minutes
        best, *controls = axis.lines
        assert best.get_xdata().tolist() == x and best.get_ydata().tolist() == [50, 50, 100, 100]
        assert [(c.get_label(), c.get_ydata()[0]) for c in controls] == [("backprop", 60), ("zero_signal", 20)]
        assert axis.get_ylim()[1] == 100
    assert right.get_xlabel() == "minutes" and whole(visible(left, "x")) and len(visible(left, "x")) == 4


def test_the_distribution_counts_every_training_once():
    rows = Rows([*SEARCH.of(stage="search"), row("h", 1.0)])
    (axis,) = axes(plots.distribution(rows))
    assert sum(p.get_height() for p in axis.patches) == 6 and axis.get_title() == "6 trainings; 3 more diverged"
    assert axis.get_xlim()[1] == 100 and whole(visible(axis, "y"))
    for only in (0.0, 0.5, 1.0):  # without controls there is no legend
        (axis,) = axes(plots.distribution(Rows([row("fa", only)])))
        assert axis.get_xlim()[0] >= 0 and axis.get_xlim()[1] <= 100 and visible(axis, "y") == [0, 1]
        first, last = axis.patches[0], axis.patches[-1]
        assert first.get_x() >= -1e-9 and last.get_x() + last.get_width() == pytest.approx(min(100, 100 * only + 0.5))


def test_shares_are_drawn_in_percent_up_to_100():
    shares = [
        ancestry.Share(component="g", winners=1.0, population=0.75),
        ancestry.Share(component="fa", winners=0.0, population=0.25),
    ]
    (axis,) = axes(plots.enrichment(shares, 2, 8))
    assert [p.get_width() for p in axis.patches] == [100, 0, 75, 25] and axis.get_xlim() == (0, 100)
    # Winners above the others at each component's place, 1 and 0, side by side.
    assert [round(p.get_y(), 6) for p in axis.patches] == [1.0, 0.0, 0.6, -0.4]
    assert {round(p.get_height(), 6) for p in axis.patches} == {0.4}
    assert [t.get_text() for t in axis.figure.legends[0].get_texts()] == ["2 best", "all 8"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["g", "fa"]


def test_intervals_end_at_0_and_100_percent():
    """Of 100, 100, 85: mean 95, deviation √75, half the interval 4.302653·5 = 21.5; of 0, 0, 15 likewise above 0."""
    high, low = (1.0, 1.0, 0.85), (0.0, 0.0, 0.15)
    rows = Rows(
        row(t, a, stage="ablation", replicate=i)
        for t, v in (("fa", high), ("g", low), ("h", (0.5,)))
        for i, a in enumerate(v)
    )
    (axis,) = axes(plots.ablation(rows, "fa", ["g", "h"]))
    ends = [s for c in axis.containers for bar in c[2] for s in np.asarray(bar.get_segments())[0][:, 0].tolist()]
    assert ends == pytest.approx([95 - 21.513, 100, 0, 5 + 21.513, 50, 50], abs=1e-3) and axis.get_xlim() == (0, 100)

    curve = {"eval_accuracy": [0.0, 1.0]}
    tested = [row("g", 1.0, stage="test", replicate=i, curve={"eval_accuracy": c}) for i, c in
              enumerate(([0.0, 1.0], [0.0, 1.0], [0.15, 0.85]))]  # fmt: skip
    lost = row("g", None, stage="test", replicate=9, curve=curve)
    table = standings(Rows([*trained("g", {0.1: (0.5,)}), *tested, lost]), {})
    (axis,) = axes(plots.learning_curves(Rows([*tested, lost]), table))
    (band,), (line,) = axis.collections, axis.lines
    assert line.get_xdata().tolist() == [1, 2] and list(line.get_ydata()) == pytest.approx([5, 95])
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0, 100) and axis.get_ylim() == (0, 100) and visible(axis, "x") == [1, 2]


def test_a_single_epoch_can_be_seen():
    tested = Rows([row("g", 0.5, stage="test", curve={"eval_accuracy": [0.5]}), *trained("g", {0.1: (0.5,)})])
    (axis,) = axes(plots.learning_curves(tested, standings(tested, {})))
    assert axis.lines[0].get_marker() == "o" and visible(axis, "x") == [1]


def test_accuracies_stand_over_their_learning_rates():
    (axis,) = axes(plots.learning_rates(standings(EVALUATION, SETTINGS)))
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
    assert found["fa"] == ([0.015, 0.03, 0.1, 0.3], pytest.approx([60, 75, 70, 60])) and "h" not in found
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0.015", "0.03", "0.1", "0.3"] and axis.get_ylim()[0] >= 0
    dots = [line for line in axis.lines if len(line.get_xdata()) == 1]
    tuned = [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor() == "white") for line in dots]
    assert tuned == [  # backprop, zero signal, 2.0*g; unit_fro(g), fa, dfa at an edge, sgn(g)
        (0.1, 70, False), (0.03, 75, False), (0.1, 50, False), (0.1, 60, False), (0.3, 20, True), (0.1, 20, False),
        (0.1, 60, False),
    ]  # fmt: skip


def test_a_grown_grid_of_learning_rates_has_ticks_that_find_room():
    grid = {2.0**-i: (0.5 + 0.01 * i,) for i in range(15)}
    (axis,) = axes(plots.learning_rates(standings(Rows(trained("g", grid)), {})))
    shown = [t for t in axis.get_xticklabels() if t.get_text() and 2.0**-14 <= t.get_position()[0] <= 1]
    assert 2 <= len(shown) <= 8


def test_plots_show_the_best_of_the_controls_and_of_the_rules():
    many = [row for i in range(8) for row in trained(f"clip(fa, {i + 1}.0)", {0.1: (0.1,)}, (0.1, (0.5 + i / 100,)))]
    others = [r for i in range(4) for r in trained(f"{2 + i}.0*g", {0.1: (0.1,)}, (0.1, (0.9 + i / 100,)))]
    controls = [*trained("g", {0.1: (0.5,)}, (0.1, (0.3,))), *trained("g - g", {0.1: (0.2,)}, (0.1, (0.2,))), *others]
    settings = {
        "controls": ["g", "g - g", *(f"{2 + i}.0*g" for i in range(4))],
        "rules": sorted({r.equation for r in many}),
    }
    table = standings(Rows([*many, *controls]), settings)
    expected = ["g", "g - g", "5.0*g", "4.0*g", *(f"clip(fa, {i}.0)" for i in (8, 7, 6, 5, 4))]
    assert [s.text for s in plots.chosen(table)] == expected


def test_correlations_end_at_1():
    found = EarlyDecisions(text="fa", n=9, correlations=(0.5, 0.9, 1.0), best=80, picked=80, spent=0.3)
    (axis,) = axes(plots.early_decisions([found]))
    assert list(axis.lines[0].get_ydata()) == [0.5, 0.9, 1.0] and axis.get_ylim()[1] == 1 and whole(visible(axis, "x"))


def test_alignments_are_means_over_seeds():
    rows = Rows(
        row("fa", 0.5, stage="test", replicate=i, curve={"eval_accuracy": [0.5, 0.5], "cosine D": c, "norm_ratio D": n})
        for i, (c, n) in enumerate((([0.2, 1.0], [1.0, 4.0]), ([0.4, 0.5], [3.0, 2.0])))
    )
    standing = Standing(
        text="fa", role="named", kind="", same=(), learning_rate=0.1, at_edge=False, tuning={0.1: 50.0}, selection=None,
        test=None, diverged=0, difference=None, hurdle="", over_hurdle=None, p=None, detectable=None, p_worse=None, unfair="",
        paper="",
    )  # fmt: skip
    left, right = axes(plots.alignment(rows, standing))
    assert list(left.lines[0].get_ydata()) == pytest.approx([0.3, 0.75]) and left.get_ylim() == (-1, 1)
    assert list(right.lines[0].get_ydata()) == pytest.approx([2, 3]) and right.get_yscale() == "log"
