"""The table of a funnel: who went how far, by what lead over tuned backprop, and what each stage cost."""

from collections.abc import Sequence

from bpevo.evaluation import Passed
from bpevo.report.terminal import Line, TextTable

# They mark who went on, who is ahead of every control, and whose best learning rate is the last that was tried.
WENT_ON, AHEAD, EDGE = " >", "*", "!"


def funnel_table(stages: Sequence[Passed]) -> TextTable:
    """For the terminal: who came furthest first, among them by the lead there; then the controls.

    Args:
      stages: those that have begun.
    """
    rules: dict[str, tuple] = {}
    for number, stage in enumerate(stages):
        for text in (*stage.leads, *stage.diverged):
            if text not in stage.controls:
                on = text in map(str, stage.went_on)
                lead = stage.leads[text].mean if text in stage.leads else float("-inf")
                rules[text] = number, on, lead
    controls = dict.fromkeys(text for stage in stages for text in stage.controls if text in stage.leads)
    lines = [_line(text, stages, "") for text in sorted(rules, key=rules.__getitem__, reverse=True)]
    lines += [_line(f"control: {text}", stages, "dim", text) for text in controls]
    columns = [f"stage {number}" for number in range(1, len(stages) + 1)]
    return TextTable("lead over tuned backprop on fresh seeds, points", "rule", columns, lines)


def _line(shown: str, stages: Sequence[Passed], style: str, text: str | None = None) -> Line:
    return Line(shown, [_cell(stage, text or shown) for stage in stages], style)


def _cell(stage: Passed, text: str) -> str:
    """The lead and half its 95 % interval."""
    on = WENT_ON if text in map(str, stage.went_on) else ""
    if text in stage.diverged:
        return "diverged" + on
    if text not in stage.leads:
        return ""
    lead = stage.leads[text]
    marks = AHEAD * (text in stage.ahead) + EDGE * (text in stage.at_edge) + on
    return f"{lead.mean:+.2f}" + (f" ± {lead.margin:.2f}" if lead.n > 1 else "") + marks


def funnel_notes(titles: Sequence[str], stages: Sequence[Passed]) -> list[str]:
    """A sentence a stage, and how to read the table."""
    said = []
    for title, stage in zip(titles, stages, strict=True):
        entered = sum(text not in stage.controls for text in (*stage.leads, *stage.diverged))
        said.append(
            f"{title}: {len(stage.went_on)} of {entered} rules went on, {stage.slot_epochs:,} slot-epochs, "
            f"{stage.of_controls:,} of them of controls; closest control: {stage.closest}."
        )
    total = sum(stage.slot_epochs for stage in stages)
    return [
        *said,
        f"{total:,} slot-epochs in all. ± half the 95 % interval of the pairs of a seed, of validation accuracies;{WENT_ON} went "
        f"on; {AHEAD} ahead of every control by such intervals; {EDGE} its best learning rate is the last that was tried, where "
        "better ones may lie beyond: if that is a control's, no rule is ahead. A lead by which a rule was chosen flatters it: "
        "what it is worth, the next stage says, and at the end the test.",
    ]
