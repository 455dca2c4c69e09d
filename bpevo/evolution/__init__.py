"""The search: component space, mutations, controllers, and how duplicates are found.

Proposals are a pure function of settings and earlier results; nothing here trains or stores anything.
"""

from bpevo.evolution.controllers import (
    CONTROLLERS,
    AgingController,
    BreedingController,
    Controller,
    ControllerFactory,
    Draw,
    DrawingController,
    NichesController,
    PaperController,
    RandomController,
)
from bpevo.evolution.equivalence import Duplicates, SameFunction, SameText
from bpevo.evolution.fitness import Bars, first_bars, fitness, standing
from bpevo.evolution.networks import ONE, OVER, Networks
from bpevo.evolution.population import Population
from bpevo.evolution.proposals import EvolutionSettings, Proposal, Result, Rung, SpaceExhausted, Trained
from bpevo.evolution.rates import at_edge, best_rate, next_rates
from bpevo.evolution.space import Change, SearchSpace

__all__ = [
    "CONTROLLERS",
    "ONE",
    "OVER",
    "AgingController",
    "Bars",
    "BreedingController",
    "Change",
    "Controller",
    "ControllerFactory",
    "Draw",
    "DrawingController",
    "Duplicates",
    "EvolutionSettings",
    "Networks",
    "NichesController",
    "PaperController",
    "Population",
    "Proposal",
    "RandomController",
    "Result",
    "Rung",
    "SameFunction",
    "SameText",
    "SearchSpace",
    "SpaceExhausted",
    "Trained",
    "at_edge",
    "best_rate",
    "first_bars",
    "fitness",
    "next_rates",
    "standing",
]
