"""Measurements, as ratios within one run: `python -m bpevo.bench`."""
