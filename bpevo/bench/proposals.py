"""What a proposal costs a controller, as the run grows."""

import time
from collections.abc import Callable

import numpy as np

from bpevo.bench.engines import equations
from bpevo.evolution import CONTROLLERS, EvolutionSettings, Proposal, Result, Rung, SameText, SearchSpace, Trained

ASKED = 200
EPOCHS = 3


def measure(controller: str, size: int, clock: Callable[[], float] = time.process_time) -> float:
    """Processor seconds of one proposal and one result, the mean of `ASKED`, in a run of `size` made up results.

    Equations are compared by their canonical form: the probe of SameFunction costs the same in every run.
    """
    rng, pool = np.random.default_rng(0), equations(100)
    settings = EvolutionSettings(rungs=(Rung(1, 0.5), Rung(2, 0.5)))
    made = CONTROLLERS[controller](SearchSpace(), settings, (), SameText())

    def result(i: int) -> Result:
        curve = tuple(rng.random(EPOCHS).tolist())
        proposal = Proposal(id=i, equation=pool[i % len(pool)], key=f"made up {i}", bars=((1, 0.0), (2, 0.0)))
        return Result(proposal=proposal, trained=Trained(accuracy=curve[-1], rungs=i % 3, curve=curve))

    for i in range(size):
        known = result(i)
        made.adopt(known.proposal)
        made.tell(known)
    later = [result(i) for i in range(size, size + ASKED)]
    start = clock()
    for r in later:
        made.ask()
        made.tell(r)
    return (clock() - start) / ASKED
