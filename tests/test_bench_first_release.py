"""How the first release found duplicates: its units, their entries, and what its digest takes for equal."""

import hashlib

import jax
import numpy as np
import pytest
from jax import lax

from bpevo.bench import first_release


def test_the_first_releases_units_have_the_relu():
    values = first_release._values(np.random.default_rng(0), first_release._UNITS[0][0])
    assert values.h.shape == (first_release.STEPS, 4, 5)
    np.testing.assert_array_equal(values.h, np.where(values.hp > 0, values.hp, 0))
    np.testing.assert_array_equal(values.dh, np.where(values.hp > 0, 1, 0))


def test_constants_stay_the_same_over_the_steps_and_other_values_do_not():
    for shapes, *_ in first_release._UNITS:
        values = first_release._values(np.random.default_rng(0), shapes)
        for name, shape in (("R", shapes.K), ("S", shapes.K), ("R_L", shapes.F)):
            constant = np.asarray(values.constants[name])
            assert constant.shape == (3, *shape) and (constant == constant[0]).all()
        for name, shape in (
            ("hp", shapes.X),
            ("hp_next", shapes.Y),
            ("b_next", shapes.Y),
            ("b_L", shapes.Z),
            ("W", shapes.K),
        ):
            value = np.asarray(getattr(values, name))
            assert value.shape == (3, *shape) and not (value == value[0]).all()


def test_entries_are_of_both_signs_over_six_decades_and_a_tenth_is_zero():
    entries = first_release._entries(np.random.default_rng(0), 100, 200)
    size = np.abs(entries[entries != 0])
    assert entries.shape == (100, 200) and 0.09 < np.mean(entries == 0) < 0.11
    assert 1e-4 <= size.min() < 1.1e-4 and 90 < size.max() <= 100 and 0.09 < np.median(size) < 0.11
    assert 0.44 < np.mean(entries < 0) < 0.46


def test_its_convolution_and_its_gradient_are_those_of_jax():
    rng = np.random.default_rng(0)
    x, k, y = (rng.normal(size=n).astype(np.float32) for n in ((3, 3, 3, 2), (2, 2, 2, 3), (3, 2, 2, 3)))

    def convolve(x):
        return lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.jit
    def both(x, k, y):
        expected, pull = jax.vjp(convolve, x)
        return (expected, *pull(y)), (first_release._conv_forward(x, k), first_release._conv_backward(y, k))

    for expected, found in zip(*both(x, k, y), strict=True):
        np.testing.assert_allclose(found, expected, 1e-4, 1e-5)


@pytest.fixture
def digest(monkeypatch):
    """The digest of a rule that gives this signal."""

    def of(*signal):
        monkeypatch.setattr(first_release, "_probe", lambda: np.asarray)
        monkeypatch.setattr(first_release, "assemble", lambda equation: np.array(signal))
        return first_release.digest(None)

    return of


def test_signals_of_ten_equal_bits_are_merged(digest):
    """Between 1 and 2 such numbers are multiples of 1/512; halves go to the even one."""
    assert digest(1 + 2**-10, -5.0) == hashlib.sha256(np.array([1.0, -5.0]).tobytes()).hexdigest()[:32]
    assert digest(1 + 2**-9) == hashlib.sha256(np.array([1 + 2**-9]).tobytes()).hexdigest()[:32]
    assert digest(2**-30 * (1 + 2**-11)) == digest(2**-30) != digest(2**-30 * (1 + 2**-9))
    assert digest(-0.0) == digest(0.0)
    assert len({digest(x) for x in (0.0, np.nan, np.inf, -np.inf, 1.0, -1.0)}) == 6
