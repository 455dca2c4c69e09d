"""Flax layers whose backward signal is a rule's, and the convolution primitives under them."""

from bpevo.layers.modules import FEEDBACK, OVERWRITE, Conv, Dense, PooledDense, carrier

__all__ = ["FEEDBACK", "OVERWRITE", "Conv", "Dense", "PooledDense", "carrier"]
