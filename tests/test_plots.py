"""The plots: their values worked out by hand, axes that end where values do, ticks at whole numbers of what is counted."""

import datetime

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
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


# What is drawn how.


def test_wall_time_is_told_in_the_unit_of_which_there_are_more_than_two():
    def unit(seconds: int) -> tuple[str, float]:
        last = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=seconds)
        rows = Rows([row("fa", 0.5, finished="2026-01-01T00:00:00"), row("dfa", 0.25, finished=last.isoformat())])
        right = plots.best_so_far(rows).axes[1]
        assert right.lines[0].get_drawstyle() == "steps-post" and right.get_ylim()[0] >= 0
        return right.get_xlabel(), right.lines[0].get_xdata()[-1]

    assert [unit(s) for s in (0, 120, 150, 7200, 9000)] == [
        ("seconds", 0), ("seconds", 120), ("minutes", 2.5), ("minutes", 120), ("hours", 2.5),
    ]  # fmt: skip
    nothing = row("g - g", 0.0, stage="control")
    assert [line.get_xdata()[0] for line in plots.distribution(Rows([row("fa", 0.5), nothing])).axes[0].lines] == [0]
    assert plots.best_so_far(SEARCH.of(stage="control")) is None and plots.distribution(Rows([row("fa", None)])) is None


def test_plots_have_their_size_and_a_histogram_forty_bars():
    one = row("fa", 0.5, finished="2026-01-01T00:00:00")
    best, scores = plots.best_so_far(Rows([one])), plots.distribution(Rows([one, row("h", 0.25)]))
    assert best.get_size_inches().tolist() == scores.get_size_inches().tolist() == [6.4, 3.2]
    assert len(scores.axes[0].patches) == 40 and not scores.axes[0].spines["top"].get_visible()
    shares = [ancestry.Share(component=c, winners=0.5, population=0.25) for c in "abc"]
    components = plots.enrichment(shares, 1, 4)
    assert components.get_size_inches() == pytest.approx([6.4, 0.5 + 0.32 * 3])
    assert [p.get_facecolor()[:3] for p in components.axes[0].patches[::3]] == [to_rgb("#d55e00"), to_rgb("#7f7f7f")]
    assert plots.enrichment([], 0, 4) is None
    rows = Rows(row(text, 0.5, stage="ablation") for text in ("fa", "g"))
    figure = plots.ablation(rows, "fa", ["g"])
    assert figure.get_size_inches() == pytest.approx([6.4, 0.8 + 0.36 * 2])
    whole, part = figure.axes[0].containers
    assert [c[0].get_color() for c in (whole, part)] == ["#d55e00", "#0072b2"] and whole[0].get_ydata() == [1]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["fa", "backprop"]


def test_a_rule_without_its_components_is_plotted_beside_what_is_left_or_not_at_all():
    rows = Rows([row("fa", 0.5, stage="ablation"), row("g", None, stage="ablation"), row("fa", 0.9, stage="tuning")])
    assert plots.ablation(rows, "fa", ["h"]) is None and plots.ablation(rows, "h", ["fa", "g"]) is None
    (axis,) = axes(plots.ablation(rows, "fa", ["g", "h"]))
    assert [c[0].get_xdata()[0] for c in axis.containers] == [50, 0]  # what diverged counts as nothing


def test_long_names_are_cut_and_none_is_read_as_mathematics():
    assert plots._label("a" * 44) == "a" * 44 and plots._label("a" * 45) == "a" * 43 + "…"
    assert (
        plots._label("a" * 9, 8) == "a" * 7 + "…"
        and plots._label("$x$") == r"\$x\$"
        and plots._label("g") == "backprop"
    )


def test_a_legend_has_four_columns_of_short_names_or_two_of_long_ones():
    def columns(*labels: str) -> int:
        figure, (axis,) = plots._figure()
        for label in labels:
            axis.plot([0], [0], label=label)
        plots._legend(figure, axis)
        return figure.legends[0]._ncols if figure.legends else 0

    assert [columns("a" * 20, "b"), columns("a", "b" * 21), columns()] == [4, 2, 0]


def test_controls_are_black_and_told_apart_by_dashes_rules_by_colours():
    tested = [
        row(s, 0.5, stage="test", curve={"eval_accuracy": [0.5, 0.5]}) for s in ("g", "g - g", "2.0*g", "fa", "dfa")
    ]
    tuned = [t for text in ("g", "g - g", "2.0*g", "fa", "dfa") for t in trained(text, {0.1: (0.5,)})]
    settings = {"controls": ["g", "g - g", "2.0*g"], "rules": ["fa", "dfa"]}
    table = standings(Rows([*tuned, *tested]), settings)
    figure = plots.learning_curves(Rows(tested), table)
    found = {
        line.get_label(): (line.get_color(), line.get_linestyle(), line.get_linewidth(), line.get_marker())
        for line in figure.axes[0].lines
    }
    assert found == {
        "backprop": ("black", "-", 1, ""), "zero_signal": ("black", ":", 1, ""), "2.0*g": ("black", "--", 1, ""),
        "fa": ("#0072b2", "-", 1.5, ""), "dfa": ("#d55e00", "-", 1.5, ""),
    }  # fmt: skip
    assert not figure.axes[0].collections  # one seed has no interval
    assert figure.get_size_inches().tolist() == plots.learning_rates(table).get_size_inches().tolist() == [6.4, 4]
    assert plots.learning_curves(Rows(tested), []) is None and plots.learning_rates([]) is None


@pytest.mark.parametrize(("count", "all_shown"), [(8, True), (9, False)])
def test_up_to_eight_learning_rates_are_all_written_below_the_axis(count, all_shown):
    grid = {2.0**-i: (0.5,) for i in range(count)}
    (axis,) = axes(plots.learning_rates(standings(Rows(trained("g", grid)), {})))
    assert ([t.get_text() for t in axis.get_xticklabels()] == [f"{r:g}" for r in sorted(grid)]) == all_shown
    small, large = axis.lines
    assert (small.get_markersize(), large.get_markersize(), large.get_markerfacecolor()) == (3, 7, "white")


def test_signals_of_units_are_drawn_from_dark_to_light_and_on_a_log_axis_only_above_0():
    standing = next(s for s in standings(EVALUATION, SETTINGS) if s.text == "fa")

    def drawn(first: float, *more, rate=0.03, **columns):
        curve = {"eval_accuracy": [0.5, 0.5]} | columns
        for i, unit in enumerate(("Conv_0", "Conv_1 a", "Dense_0")):
            curve |= {f"cosine {unit}": [0.5, None], f"norm_ratio {unit}": [first, 1.0 + i]}
        return plots.alignment(Rows([row("fa", 0.5, stage="test", rate=rate, curve=curve), *more]), standing)

    left, right = axes(drawn(0.5, row("fa", None, stage="test", rate=0.03)))
    assert [line.get_color() for line in left.lines] == [pytest.approx((0, green, 0.55)) for green in (0.15, 0.5, 0.85)]
    assert [line.get_label() for line in right.lines] == ["Conv_0", "Conv_1 a", "Dense_0"]
    assert (left.get_title(), right.get_title(), right.get_yscale()) == ("cosine", "norm ratio", "log")
    assert np.isnan(left.lines[0].get_ydata()[1]) and [list(line.get_ydata())[1] for line in right.lines] == [1, 2, 3]
    assert axes(drawn(0.0))[1].get_yscale() == "linear"
    assert drawn(0.5, rate=0.1) is None and plots.alignment(Rows(), standing) is None
    assert plots.alignment(Rows([row("fa", 0.5, stage="test", rate=0.03)]), standing) is None


def test_correlations_of_more_rules_than_colours_take_them_again():
    found = [EarlyDecisions(text="fa", n=9, correlations=(0.5, 1.0), best=80, picked=80, spent=0.3)] * 9
    colours = [line.get_color() for line in plots.early_decisions(found).axes[0].lines]
    assert len(set(colours)) == 8 and colours[8] == colours[0] == "#0072b2" and plots.early_decisions([]) is None
