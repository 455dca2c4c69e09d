"""Layers whose backward signal is a rule's, the transformation of any network, and the convolution primitives under them."""

from bpevo.layers.evolve import Evolved, UnitInfo, Units, evolve
from bpevo.layers.modules import FEEDBACK, OVERWRITE, Conv, Dense, PooledDense, carrier

__all__ = [
    "FEEDBACK",
    "OVERWRITE",
    "Conv",
    "Dense",
    "Evolved",
    "PooledDense",
    "UnitInfo",
    "Units",
    "carrier",
    "evolve",
]
