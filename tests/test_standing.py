"""By what trainings are ranked that were proposed before there was a bar: by hand, in any order, in a whole search."""

import hypothesis
import hypothesis.strategies as st
import pytest
from test_runs import EPOCHS, StandIn, plan, search

from bpevo.evolution import Rung, first_bars, fitness, standing
from bpevo.runs import Row, judged, ranked

CURVE = (0.2, 0.4, 0.5, 0.9)
RUNGS = (1, 3)


@pytest.mark.parametrize(
    "bars, first, expected",
    [
        ((), {}, (0.9, 2)),  # no bar was ever known
        ((), {1: 0.2, 3: 0.5}, (0.9, 2)),  # at the bar is not below it
        ((), {1: 0.21, 3: 0.5}, (0.2, 0)),
        ((), {1: 0.2, 3: 0.51}, (0.5, 1)),
        ((), {3: 0.51}, (0.5, 1)),  # a first rung that never had a bar counts as survived
        ((), {1: 0.3, 3: 0.6}, (0.2, 0)),  # the first rung where it lies below
        (((1, 0.1),), {1: 0.3, 3: 0.6}, (0.5, 1)),  # its own bar counts, not the first one
        (((1, 0.1), (3, 0.4)), {1: 0.3, 3: 0.6}, (0.9, 2)),
        ((), {2: 0.9}, (0.9, 2)),  # no rung of this search
    ],
)
def test_a_training_is_held_to_its_own_bars_and_where_it_had_none_to_the_first(bars, first, expected):
    assert standing(0.9, 2, curve=CURVE, rung_epochs=RUNGS, bars=bars, first=first) == expected


def test_bars_change_nothing_for_what_was_stopped_before_them_or_diverged():
    first = {1: 0.3, 3: 0.6}
    assert standing(0.4, 0, curve=(0.4,), rung_epochs=RUNGS, bars=((1, 0.5),), first=first) == (0.4, 0)
    assert standing(0.2, 0, curve=(0.2,), rung_epochs=RUNGS, bars=((1, 0.5),), first=first) == (0.2, 0)
    assert standing(0.2, 1, curve=(0.2,), rung_epochs=(1,), bars=(), first={1: 0.3}) == (
        0.2,
        0,
    )  # its end is at the rung
    assert standing(None, 1, curve=(0.2, 0.3), rung_epochs=RUNGS, bars=(), first=first) == (None, 1)


def row(proposal: int | None, curve, stage: str = "search", accuracy=..., rungs: int = 2) -> Row:
    return Row(
        stage=stage, equation=f"equation {proposal}", learning_rate=0.1, replicate=0, proposal=proposal, status="done",
        reason="", accuracy=curve[-1] if accuracy is ... else accuracy, rungs=rungs, curve={"eval_accuracy": list(curve)},
        seconds=1.0, finished="",
    )  # fmt: skip


def test_rows_are_ranked_by_the_first_bar_by_id_whatever_finished_first():
    bars = {0: (), 1: (), 2: ((1, 0.3),), 3: ((1, 0.1), (3, 0.5)), 4: ((1, 0.6), (3, 0.7))}
    rows = [
        row(4, (0.6, 0.6, 0.7, 0.7)),
        row(0, (0.2, 0.9, 0.9, 0.9)),  # below 0.3 after the first epoch
        row(1, (0.3, 0.3, 0.4, 0.8)),  # below 0.5 after the third
        row(None, (0.1, 0.1, 0.1, 0.1), stage="control", rungs=0),
        row(2, (0.4, 0.4, 0.45, 0.95)),  # had a bar at the first rung alone; below the first one at the second
        row(3, (0.2, 0.2, None), accuracy=None),
    ]
    found = judged(rows, bars, RUNGS)
    assert [(r.proposal, r.accuracy, r.rungs) for r in found] == [
        (4, 0.7, 2), (0, 0.2, 0), (1, 0.4, 1), (None, 0.1, 0), (2, 0.45, 1), (3, None, 2),
    ]  # fmt: skip
    assert [r.proposal for r in ranked(found.of(stage="search"))] == [4, 2, 1, 0]
    backwards = judged(rows[::-1], dict(reversed(bars.items())), RUNGS)
    assert backwards[::-1] == found


@hypothesis.given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 8).map(lambda i: i / 8), min_size=4, max_size=4), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 12),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_the_order_of_rules_does_not_depend_on_the_order_of_finishing(trained, from_here, least, random):
    bars = {i: ((1, least + i / 100),) if i >= from_here else () for i in range(len(trained))}
    rows = [row(i, curve, accuracy=None if lost else curve[-1]) for i, (curve, lost) in enumerate(trained)]
    expected = [r.proposal for r in ranked(judged(rows, bars, RUNGS))]
    random.shuffle(rows)
    assert [r.proposal for r in ranked(judged(rows, bars, RUNGS))] == expected
    alive = sum(not lost for _, lost in trained)
    assert len(expected) == alive


def test_in_a_search_with_a_long_lag_the_early_ones_hold_no_more_places_than_they_deserve(tmp_path):
    """Of 120 proposals the first 60 were drawn without a bar; all curves are alike in law."""
    rungs = (Rung(1, 0.75),)
    made = search(tmp_path, plan(120, lag=41, rungs=rungs), StandIn(8))
    bars = {p.id: p.bars for p in made.proposals}
    early = [p.id for p in made.proposals if not p.bars and p.confirms is None]
    assert early == [i for i in range(60) if i not in (43, 54)]  # two confirmations
    first = first_bars(bars.values())
    assert list(first) == [1]
    rows = made.rows.of(stage="search")
    raw, fair = (list(ranked(r)) for r in (rows, judged(rows, bars, (1,))))
    survivors = [r for r in fair if r.rungs == 1]
    assert all(r.accuracy is not None and r.curve["eval_accuracy"][0] >= first[1] for r in survivors if r.proposal < 60)
    assert sum(r.rungs for r in raw if r.proposal < 60) > 2 * sum(r.rungs for r in fair if r.proposal < 60)
    for r in fair:
        assert len(r.curve["eval_accuracy"]) <= EPOCHS and fitness(r.accuracy, r.rungs) <= fitness(
            next(o for o in rows if o.proposal == r.proposal).accuracy, 1
        )
