"""The search: component space, mutations, the paper's controller, and the keys under which duplicates are found.

Proposals are a pure function of settings and earlier results; nothing here trains or stores anything.
"""

from bpevo.evolution.controllers import (
    CONTROLLERS,
    Controller,
    EvolutionSettings,
    PaperController,
    Proposal,
    Result,
    Rung,
    SpaceExhausted,
)
from bpevo.evolution.equivalence import functional_key
from bpevo.evolution.fitness import fitness
from bpevo.evolution.space import Change, SearchSpace

__all__ = [
    "CONTROLLERS",
    "Controller",
    "Change",
    "EvolutionSettings",
    "Proposal",
    "PaperController",
    "Result",
    "Rung",
    "SearchSpace",
    "SpaceExhausted",
    "fitness",
    "functional_key",
]
