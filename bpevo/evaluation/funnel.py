"""A funnel: rules climb through larger and larger proxies, and at each the worst fall out (as in Lion's search, arXiv
2302.06675). Each stage is an evaluation on settings of its own: controls and rules tuned alike, then fresh seeds, by which the
best go on.
"""

import dataclasses
from collections.abc import Mapping

from bpevo.evaluation.evaluation import finalists, rate, tried
from bpevo.evaluation.plan import EvaluationPlan
from bpevo.evaluation.significance import Summary, summary
from bpevo.evaluation.treatments import BACKPROP, Treatment
from bpevo.evolution.rates import at_edge
from bpevo.runs import Rows
from bpevo.workers import Stage


@dataclasses.dataclass(frozen=True)
class FunnelStage:
    """A proxy, by what differs from the stage before it, and how many rules go on from it."""

    changes: Mapping[str, str]  # values of settings by name
    keep: int


def read_stages(text: str, names: tuple[str, ...]) -> list[FunnelStage]:
    """The stages that a text spells, separated by ';', each of settings and `keep`, separated by blanks.

    Args:
      text: such as `train_examples=500 keep=20; model=mlp-64-64 epochs=10 keep=5`.
      names: the settings that a stage may change.

    Raises:
      ValueError: it spells none.

    >>> read_stages("keep=20; epochs=10 keep=5", names=("epochs",))
    [FunnelStage(changes={}, keep=20), FunnelStage(changes={'epochs': '10'}, keep=5)]
    """
    stages = []
    for number, part in enumerate(text.split(";"), 1):
        pairs = [word.partition("=") for word in part.split()]
        values = {name: value for name, _, value in pairs}
        wrong = [name for name in values if name not in (*names, "keep")]
        if wrong or len(values) < len(pairs):
            what = f"no setting {wrong[0]!r}" if wrong else "a setting twice"
            raise ValueError(f"stage {number} has {what}: it may change {', '.join(names)}")
        keep = values.pop("keep", "")
        if not keep.isdecimal() or int(keep) < 1:
            raise ValueError(
                f"stage {number}, {part.strip()!r}, must say how many rules go on from it, such as keep=10"
            )
        stages.append(FunnelStage(values, int(keep)))
    kept = [stage.keep for stage in stages]
    if kept != sorted(kept, reverse=True):
        raise ValueError(f"keep must not grow from stage to stage, as {', '.join(map(str, kept))} does")
    return stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passed:
    """What a stage showed; figures in points of validation accuracy, on the fresh seeds of its selection."""

    leads: dict[str, Summary]  # over tuned backprop, paired by seed: of each treatment of which no repetition diverged
    ahead: tuple[str, ...]  # rules among them whose 95 % intervals are above every control, paired likewise; none where
    # its own best learning rate or a control's is at an edge
    at_edge: tuple[str, ...]  # treatments whose best learning rate is the last that was tried
    diverged: tuple[str, ...]  # treatments that did, or found no learning rate
    controls: tuple[str, ...]
    went_on: tuple[Treatment, ...]  # best first
    slot_epochs: int
    of_controls: int  # of these

    @property
    def closest(self) -> str:
        """The control with the greatest lead over backprop; backprop itself where none has one."""
        ahead = {text: self.leads[text].mean for text in self.controls if text in self.leads}
        best = max(ahead, key=lambda text: ahead[text], default="")
        return best if best and ahead[best] > 0 else str(BACKPROP)


def passed(rows: Rows, plan: EvaluationPlan) -> Passed:
    """What the evaluation of a stage showed, as far as it has come."""
    fresh = {str(t): _fresh(rows, t) for t in plan.treatments}
    own = [str(t) for t in plan.controls]
    tuned = [str(t) for t in plan.treatments if rate(rows, t) is not None]
    lost = {row.equation for row in rows.of(stage=Stage.TUNING)} - set(tuned)
    diverged = [text for text, accuracies in fresh.items() if None in accuracies.values() or text in lost]
    over = {
        text: {control: lead for control in own if control != text and (lead := _lead(fresh[text], fresh[control]))}
        for text in fresh
        if text not in diverged
    }
    edges = tuple(t for t in tuned if at_edge(plan.learning_rates, tried(rows, t)))
    fair = not set(own).intersection(edges)

    def leads_all(text: str) -> bool:
        leads = over.get(text, {}).values()
        return text not in own and text not in edges and bool(leads) and all(map(_above_zero, leads))

    return Passed(
        leads={text: leads[str(BACKPROP)] for text, leads in over.items() if str(BACKPROP) in leads},
        ahead=tuple(filter(leads_all, fresh)) if fair else (),
        at_edge=edges,
        diverged=tuple(diverged),
        controls=tuple(own),
        went_on=tuple(t for t in finalists(rows, plan) if t not in plan.controls and str(t) not in lost),
        slot_epochs=rows.slot_epochs,
        of_controls=Rows(row for row in rows if row.equation in own).slot_epochs,
    )


def _lead(accuracies: Mapping[int, float | None], control: Mapping[int, float | None]) -> Summary | None:
    """Over the seeds on which neither diverged; None if there is none."""
    pairs = [100 * (a - b) for seed, a in accuracies.items() if a is not None and (b := control.get(seed)) is not None]
    return summary(pairs) if pairs else None


def _above_zero(lead: Summary) -> bool:
    """Never on one seed, whose margin is nan, nor where all pairs are the same: they say nothing of their spread."""
    return lead.mean > lead.margin and lead.deviation > 1e-4  # points; less is rounding


def _fresh(rows: Rows, treatment: Treatment) -> dict[int, float | None]:
    """Accuracies by replicate at the tuned rate."""
    chosen = rows.of(stage=Stage.SELECTION, equation=str(treatment), learning_rate=rate(rows, treatment))
    return {row.replicate: row.accuracy for row in chosen}
