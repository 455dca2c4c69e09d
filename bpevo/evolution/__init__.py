"""The search: component space, mutations, controllers, and how duplicates are found.

Proposals are a pure function of settings and earlier results; nothing here trains or stores anything.
"""

from bpevo.evolution.controllers import (
    CONTROLLERS,
    Controller,
    ControllerFactory,
    Draw,
    DrawingController,
    PaperController,
    RandomController,
)
from bpevo.evolution.equivalence import Duplicates, SameFunction, SameText
from bpevo.evolution.fitness import Bars, first_bars, fitness, standing
from bpevo.evolution.proposals import EvolutionSettings, Proposal, Result, Rung, SpaceExhausted, Trained
from bpevo.evolution.space import Change, SearchSpace

__all__ = [
    "CONTROLLERS",
    "Bars",
    "Change",
    "Controller",
    "ControllerFactory",
    "Draw",
    "DrawingController",
    "Duplicates",
    "EvolutionSettings",
    "PaperController",
    "Proposal",
    "RandomController",
    "Result",
    "Rung",
    "SameFunction",
    "SameText",
    "SearchSpace",
    "SpaceExhausted",
    "Trained",
    "first_bars",
    "fitness",
    "standing",
]
