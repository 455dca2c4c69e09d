"""The report of a race: its sentences, tables and curves, from figures by hand."""

import dataclasses
import html
import re

import pytest

from bpevo.bench.race import page, statistics
from bpevo.bench.race.protocol import FRACTIONS, REFERENCES


def result(values, unseen=0.5) -> dict:
    score = {"rate": 0.1, "at_edge": False}
    points = [
        {"equations": 10 * i, "rule": "unit_fro(g)", "search": 0.9, "score": score | {"fresh": [v / 100, v / 100]}}
        for i, v in enumerate(values, 1)
    ]
    return {"points": points, "unseen": {"elsewhere": score | {"fresh": [unseen, None]}}}


def made_up(planned: int = 3) -> page.Race:
    results = {}
    for seed in range(4):
        shift = 0.1 * seed
        results["paper", seed] = result([50, 60, 70, 80, 90 + shift])
        results["random", seed] = result([50, 55, 60, 65, 70 + shift**2])
        results["aging", seed] = result([50, 70, 90 + shift, 92, 95 + 2 * shift])
        results["backprop", seed] = result([94] * 5)
    del results["random", 3]  # not done yet
    return page.Race(name="made up", budget=1600, planned=planned, arms=["paper", "random", "aging"], results=results)


def test_the_report_of_a_race_says_who_is_better_by_how_much_and_what_is_saved():
    race = made_up()
    assert race.seeds == [0, 1, 2]
    paper, random, aging = page.compared_rows(race)
    assert aging[1:3] == ["+1.20 ± 0.50", "+5.10 ± 0.25"]  # 95, 95.2, 95.4 - 94; - 90, 90.1, 90.2: means by hand
    assert paper[-1] == "1 (1 to 1)" and random[-1] == "never (never to never)" and aging[-1].startswith("0.25 (")
    assert random[2].startswith("-20.0")
    first, second = page.verdict(race)
    assert first.startswith(
        "Better than paper at all of the budget over 3 search seeds: aging (+5.10 points, p <0.001)"
    )
    assert "paper (+2" in second and "aging (+2" in second
    curve = dict(zip(page.COLUMNS, page.rows(race)[0], strict=True))
    assert curve["1/16"] == "50.00 ± 0.00" and curve["all"] == "90.10 ± 0.25" and curve["equations"] == "50"
    unseen = page.unseen_rows(race)
    assert ["elsewhere", "aging", "25.00 ± 0.00", "+0.00 ± 0.00", "50%"] in unseen


def test_there_is_no_verdict_before_all_seeds_are_done():
    assert page.verdict(made_up(planned=4)) == ["No verdict yet: 3 of 4 search seeds are done."]


def test_there_is_none_either_while_an_arm_is_missing_and_seeds_beyond_those_of_this_race_do_not_count():
    race = made_up()
    more = dataclasses.replace(race, arms=[*race.arms, "niches"])
    assert page.verdict(more) == ["No verdict yet: 0 of 3 search seeds are done."]
    apart = {(arm, seed + (seed == 2)): found for (arm, seed), found in race.results.items() if seed < 3}
    assert page.verdict(dataclasses.replace(race, results=apart)) == ["No verdict yet: 2 of 3 search seeds are done."]
    assert dataclasses.replace(race, planned=2).seeds == [0, 1]


def test_the_page_of_a_race_holds_curves_tables_and_what_was_measured_and_nothing_from_elsewhere():
    race = made_up()
    text, table = page.report_html([race], "versions"), page.markdown([race], "versions")
    assert text.count("<figure>") == 1 and "http" not in text.replace("http-equiv", "")
    for expected in ("aging", "unit_fro(g)", "95.40", "backprop, rescaled per unit", *page.verdict(race)):
        assert html.escape(expected) in text and expected in table
    assert "Holm-corrected" in text and "1600" not in table and "1,600 slot-epochs" in table
    (axis,) = page.curves(race).axes
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert lines["aging"] == pytest.approx([50, 70, 90.1, 92, 95.2]) and len(lines) == 4
    assert axis.lines[0].get_xdata() == pytest.approx([1600 * f for f in FRACTIONS])


def by_hand() -> page.Race:
    """Two search seeds of paper and random. With n = 2 the margin is 6.3531 times the values' difference."""

    def of(values, equations=0, rule="g", search=0.0, at_edge=False, **unseen) -> dict:
        score = {"rate": 0.1, "at_edge": at_edge}
        points = [
            {"equations": 1, "rule": "h", "search": 0.1, "score": score | {"fresh": [v / 100]}} for v in values[:-1]
        ]
        last = score | {"fresh": [values[-1] / 100 + 0.01, values[-1] / 100 - 0.01]}
        points.append({"equations": equations, "rule": rule, "search": search, "score": last})
        return {
            "points": points,
            "unseen": {place.replace("_", " "): {"fresh": fresh} for place, fresh in unseen.items()},
        }

    results = {
        ("random", 0): of([3, 86, 96, 92, 93], 20, "left(g, relu(fa))", 0.5, there=[0.3]),
        ("random", 1): of([5, 86, 96, 92, 96], 30, "unit_fro(g)", 0.6, here=[0.25], there=[0.3]),
        ("paper", 0): of([50, 60, 70, 80, 90], 1000, "", 0.9, True, here=[0.7]),
        ("paper", 1): of([50, 60, 70, 80, 92], 1004, "2.0*g", 0.8, here=[0.9]),
        ("backprop", 0): of([94] * 5, here=[0.5, 0.5], there=[0.1]),
        ("backprop", 1): of([94] * 5, at_edge=True, here=[0.6, None], there=[0.2]),
        ("backprop", 2): of([94] * 5),  # the arms have not finished this seed
    }
    return page.Race(name="mlp on made up", budget=1600, planned=2, arms=REFERENCES, results=results)


# Random against paper: 3 and 4 points, t = 3.5 / 0.5, of which p is 1/2 - arctan(7) / pi = 0.0452, twice by Holm. It reaches
# paper's 91 halfway between 1/8 and 1/4 in their logarithm; the 90 of the first seed after 0.4 and the 92 of the second after 0.6
# of that way.
TABLES = """\
| arm | equations | 1/16 | 1/8 | 1/4 | 1/2 | all | search % | at edge |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| paper | 1,002 | 50.00 ± 0.00 | 60.00 ± 0.00 | 70.00 ± 0.00 | 80.00 ± 0.00 | 91.00 ± 12.71 | 85.00 | 50% |
| random | 25 | 4.00 ± 12.71 | 86.00 ± 0.00 | 96.00 ± 0.00 | 92.00 ± 0.00 | 94.50 ± 19.06 | 55.00 | 0% |
| backprop |  | 94.00 ± 0.00 | 94.00 ± 0.00 | 94.00 ± 0.00 | 94.00 ± 0.00 | 94.00 ± 0.00 |  | 50% |

| arm | vs backprop | vs paper | p | vs random | p | reaches paper's end at |
|---|---:|---:|---:|---:|---:|---:|
| paper | -3.00 ± 12.71 |  |  | -3.50 ± 6.35 | 0.955 | 1 (1 to 1) |
| random | +0.50 ± 19.06 | +3.50 ± 6.35 | 0.090 |  |  | 0.18 (0.16 to 0.19) |

| final rules on | arm | accuracy % | vs backprop | diverged |
|---|---:|---:|---:|---:|
| here | paper | 80.00 ± 127.06 | +40.00 ± 254.12 | 0% |
| here | random | 25.00 | -5.00 | 0% |
| here | backprop | 40.00 ± 127.06 |  | 25% |
| there | random | 30.00 ± 0.00 | +15.00 ± 63.53 | 0% |
| there | backprop | 15.00 ± 63.53 |  | 0% |

| rule | kind | arm | seed | accuracy % |
|---|---:|---:|---:|---:|
| `unit_fro(g)` | backprop, rescaled per unit | random | 1 | 96.00 |
| `g` | backprop | random | 0 | 93.00 |
| `2.0*g` | scaled backprop | paper | 1 | 92.00 |
"""


@pytest.fixture
def few(monkeypatch):
    """Resamples: a page is made in no time."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def test_the_markdown_of_a_race_by_hand(few):
    assert page.markdown([by_hand()], "jax 1, cores 2") == (
        "# A race of controllers\n\njax 1, cores 2\n\n"
        "## mlp on made up: 1,600 slot-epochs, 2 search seeds\n\n"
        "- Better than paper at all of the budget over 2 search seeds: none of the arms.\n"
        "- Better than random at all of the budget over 2 search seeds: none of the arms.\n\n" + TABLES
    )


def test_the_page_has_the_same_tables_under_headings_and_what_was_measured_at_its_end(few):
    text = page.report_html([by_hand()], "jax <1>")
    assert [(level, html.unescape(h)) for level, h in re.findall(r"<h(\d)>(.*?)</h\1>", text)] == [
        ("1", "A race of controllers"),
        ("2", "mlp on made up: 1,600 slot-epochs, 2 search seeds"),
        ("3", "Accuracy of the tuned top rule on new seeds, %, after parts of the budget"),
        ("3", "At all of the budget, paired by search seed; p: Holm-corrected"),
        ("3", "The final rules where the search never was"),
        ("3", "The final rules that did best, by a figure that flatters for being chosen by"),
        ("2", "What was measured"),
    ]
    found = [re.sub("<img.*?><br>|</?code>", "", c) for c in re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", text)]
    lines = [line[2:-2].split(" | ") for line in TABLES.replace("`", "").splitlines() if line[:3] not in ("", "|--")]
    assert list(map(html.unescape, found)) == [cell.strip() for line in lines for cell in line]
    assert "Mean over search seeds of 10 new seeds each, and 95 % t-intervals" in text and "jax &lt;1&gt;" in text
    assert "<p>Primary. After 1/16" in text.replace("\n", " ")


def test_the_ten_best_final_rules_are_shown_and_three_of_them_drawn(few):
    rules = [f"g + ({i}.0*h)" for i in range(2, 14)]
    results = {("backprop", seed): result([94] * 5) for seed in range(12)}
    for seed, rule in enumerate(rules):
        results["random", seed] = result([80 + seed] * 5)
        results["random", seed]["points"][-1]["rule"] = rule
    race = page.Race(name="many", budget=16, planned=12, arms=["random"], results=results)
    assert [(row[0], *row[2:]) for row in page._finals(race)] == [
        (rules[seed], "random", str(seed), f"{80 + seed}.00") for seed in range(11, 1, -1)
    ]
    text = page.report_html([race], "")
    assert [rules.index(alt) for alt in re.findall(r'<img class="equation" alt="(.*?)"', text)] == [11, 10, 9]
    assert all(f"<code>{rule}</code>" in text for rule in rules[2:]) and rules[1] not in text


def test_curves_have_a_controllers_colour_dashes_for_one_rate_and_bands_that_end_at_0_and_100():
    race = by_hand()
    arms = [*REFERENCES, "paper-one-rate"]
    results = dict(race.results) | {("paper-one-rate", seed): race.results["paper", seed] for seed in (0, 1)}
    (axis,) = page.curves(page.Race(name="", budget=1600, planned=2, arms=arms, results=results)).axes
    assert [(line.get_label(), line.get_color(), line.get_linestyle()) for line in axis.lines] == [
        ("paper", "#0072b2", "-"),
        ("random", "#d55e00", "-"),
        ("paper-one-rate", "#0072b2", "--"),
        ("backprop", "black", ":"),
    ]
    bands = [band.get_paths()[0].vertices[:, 1] for band in axis.collections]
    assert (bands[0].min(), bands[0].max()) == pytest.approx((50, 100))  # 91 + 12.71
    assert (bands[1].min(), bands[1].max()) == pytest.approx((0, 100))  # 4 - 12.71
    assert sorted(bands[0])[-3] == pytest.approx(80) and len(bands) == 4
    assert 91 - 12.7062 in [pytest.approx(y, abs=1e-3) for y in bands[0]]
    assert axis.get_xscale() == "log" and list(axis.get_xticks()) == [100, 200, 400, 800, 1600]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["100", "200", "400", "800", "1,600"]
    one = {key: found for key, found in race.results.items() if key[1] == 0}
    (axis,) = page.curves(page.Race(name="", budget=1600, planned=1, arms=REFERENCES, results=one)).axes
    assert len(axis.lines) == 3 and not axis.collections


def test_one_search_seed_gives_numbers_without_margins_and_no_comparison(few):
    one = {key: found for key, found in by_hand().results.items() if key[1] == 0}
    race = page.Race(name="", budget=1600, planned=1, arms=REFERENCES, results=one)
    assert page.verdict(race) == ["No comparison: it needs two search seeds, and the arm paper or random."]
    assert page.rows(race)[0] == ["paper", "1,000", "50.00", "60.00", "70.00", "80.00", "90.00", "90.00", "100%"]
    assert page.compared_rows(race)[1][:6] == ["random", "-1.00", "", "", "", ""]


def test_without_the_arm_paper_nothing_is_saved_and_the_others_are_compared_with_random():
    race = dataclasses.replace(made_up(), arms=["random", "aging"])
    (random, aging), (sentence,) = page.compared_rows(race), page.verdict(race)
    assert random == ["random", "-23.98 ± 0.05", "", "", "", "", ""]  # 70, 70.01, 70.04
    assert aging[:4] == ["aging", "+1.20 ± 0.50", "", ""] and aging[4][:6] == "+25.18" and aging[6] == ""
    assert sentence.startswith(
        "Better than random at all of the budget over 3 search seeds: aging (+25.18 points, p <0.001)"
    )


def test_shares_of_the_budget_are_shown_with_what_is_known_of_them():
    shown = {
        0.0625: "≤ 0.0625",
        0.05: "≤ 0.05",
        0.0626: "0.063",
        0.5: "0.5",
        0.876: "0.88",
        1.0: "1",
        float("inf"): "never",
    }
    assert {share: page._share(share) for share in shown} == shown
