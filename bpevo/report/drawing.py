"""Figures as bytes: drawn under matplotlib's own defaults, so that the same rows give the same bytes whatever a user has set."""

import contextlib
import io
from collections.abc import Iterator

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

DPI = 150  # of PNGs


@contextlib.contextmanager
def fixed_style() -> Iterator[None]:
    """Settings under which figures are made and drawn: artists read them at both times. The user's own come back at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Identifiers in an SVG from a fixed salt, letters as outlines: no chance, no fonts of the reader's.
        matplotlib.rcParams.update({"svg.hashsalt": "bpevo", "svg.fonttype": "path"})
        yield


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with fixed_style():
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with fixed_style():
        FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def equation(latex: str) -> bytes:
    """The SVG of a rule, what b_i^p becomes, no larger than its letters."""
    text = rf"$b_i^p \leftarrow {latex}$"
    with fixed_style():
        font = FontProperties(size=13, math_fontfamily="cm")
        width, height, depth, _, _ = MathTextParser("path").parse(text, 72, font)
        figure = Figure(figsize=(width / 72, height / 72))
        figure.text(0, depth / height, text, fontproperties=font)
        return svg(figure)
