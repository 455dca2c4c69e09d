"""Do early accuracies tell the final ones? The paper's claim for rules that learn faster, from the tuning's own curves.

A configuration is a learning rate and a seed; all were trained to the end, so what successive halving would have done
with them is read off their curves, nothing is trained again. Source: 1808.02822, section 4; Hyperband is 1603.06560.
"""

import dataclasses
import math

import numpy as np

from bpevo.runs import Rows
from bpevo.workers import Stage

MIN_CONFIGURATIONS = 9
DRAWS, POOL, ETA = 2000, 9, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyDecisions:
    """How early one treatment's final accuracies can be told, over `n` configurations. Accuracies in %."""

    text: str
    n: int
    correlations: tuple[float, ...]  # Spearman's, of accuracy after each epoch and after the last
    best: float  # mean final accuracy of the best of a random pool
    picked: float  # mean final accuracy of what successive halving picks from it
    spent: float  # epochs it trains, over those of training the whole pool

    @property
    def regret(self) -> float:
        return self.best - self.picked


def final_curves(rows: Rows, text: str) -> np.ndarray:
    """Validation accuracy [n, epochs] of a treatment's tuning; 0 from where a training diverged."""
    own = rows.of(stage=Stage.TUNING, equation=text)
    curves = np.zeros((len(own), max((len(e.curve["eval_accuracy"]) for e in own), default=0)))
    for curve, e in zip(curves, own, strict=True):
        values = e.curve["eval_accuracy"]
        values = values[:-1] if e.accuracy is None else values
        curve[: len(values)] = [v or 0.0 for v in values]
    return curves


def rank_correlations(curves: np.ndarray) -> tuple[float, ...]:
    """Spearman's, of each epoch's accuracies with the last epoch's; nan where one of them does not vary."""
    from scipy import stats  # here, as it takes a third of a command's start

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        return float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else math.nan

    return tuple(correlation(curves[:, e], curves[:, -1]) for e in range(curves.shape[1]))


def successive_halving(curves: np.ndarray, rng: np.random.Generator, eta: int = ETA) -> tuple[int, int]:
    """(index of the survivor, epochs trained): at epochs/η^k the best 1/η go on; ties are broken at random."""
    epochs = curves.shape[1]
    rungs = [epochs]
    while rungs[0] // eta and eta ** len(rungs) <= len(curves):
        rungs.insert(0, rungs[0] // eta)
    alive, spent, trained = np.arange(len(curves)), 0, 0
    for i, rung in enumerate(rungs):
        spent, trained = spent + len(alive) * (rung - trained), rung
        order = np.lexsort((rng.random(len(alive)), -curves[alive, rung - 1]))
        alive = alive[order][: 1 if i == len(rungs) - 1 else len(alive) // eta]
    return int(alive[0]), spent


def early_decisions(rows: Rows, text: str) -> EarlyDecisions | None:
    """None below MIN_CONFIGURATIONS or two epochs. Pools are drawn at random, DRAWS times, from a fixed seed."""
    curves = final_curves(rows, text)
    if len(curves) < MIN_CONFIGURATIONS or curves.shape[1] < 2:
        return None
    rng = np.random.default_rng(0)
    outcomes = []
    for _ in range(DRAWS):
        pool = curves[rng.choice(len(curves), POOL, replace=False)]
        chosen, spent = successive_halving(pool, rng)
        outcomes.append((pool[:, -1].max(), pool[chosen, -1], spent / pool.size))
    best, picked, spent = np.mean(outcomes, 0)
    return EarlyDecisions(
        text=text,
        n=len(curves),
        correlations=rank_correlations(curves),
        best=100 * best,
        picked=100 * picked,
        spent=float(spent),
    )
