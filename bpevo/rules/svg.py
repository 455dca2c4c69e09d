"""Pictures as SVG text: boxes, arrows, short formulas, in the reader's own fonts; the same calls give the same bytes."""

import dataclasses
import html
import re
from collections.abc import Sequence

SMALL = 11.5  # px, the smallest letters: sub- and superscripts, names
INK, FAINT = "#222", "#777"
_SERIF = 'font-family="Times New Roman, Times, serif"'
_MONO = 'font-family="Menlo, Consolas, DejaVu Sans Mono, monospace"'
_SANS = 'font-family="Helvetica, Arial, sans-serif"'
MONO_WIDTH = 0.605  # of a letter, in em
_SIMPLE = re.compile(r"([A-Za-z])(?:_(?:\{([^{}\\]+)\}|(\w)))?(?:\^(?:\{([^{}\\]+)\}|(\w)))?")


@dataclasses.dataclass(frozen=True)
class Run:
    """A piece of a formula: letters with what stands below and above them at the end."""

    text: str
    sub: str = ""
    sup: str = ""
    italic: bool = True


def symbol(latex: str) -> Run | None:
    """A letter with indices, such as `h_{i+1}^p`; None if it is anything else."""
    match = _SIMPLE.fullmatch(latex)
    if match is None:
        return None
    letter, *indices = (g or "" for g in match.groups())
    return Run(letter, indices[0] or indices[1], indices[2] or indices[3])


def _letters(text: str, size: float) -> float:
    """Width for the widest of the usual fonts."""
    return sum(0.35 if c in " ()·,.|′" else 0.92 if c in "WMm⊙" else 0.65 for c in text) * size


def _advance(run: Run, size: float) -> float:
    return _letters(run.text, size) + max(_letters(run.sub, SMALL), _letters(run.sup, SMALL))


def width(runs: Sequence[Run], size: float) -> float:
    return sum(_advance(run, size) for run in runs)


def number(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


class Picture:
    """Collects elements; `text` is the file. Coordinates in px, the origin at the top left."""

    def __init__(self, pixels: int, title: str):
        self._width, self._title, self._elements = pixels, title, list[str]()

    def add(self, element: str) -> None:
        self._elements.append(element)

    def _letters(
        self, x: float, y: float, text: str, size: float, color: str, font: str, anchor: str = "start"
    ) -> None:
        at = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}" fill="{color}" text-anchor="{anchor}"'
        self.add(f'<text {at} {font} xml:space="preserve">{html.escape(text)}</text>')

    def words(self, x: float, y: float, text: str, color: str = INK, bold: bool = False, anchor: str = "start") -> None:
        """Prose at x on the baseline y."""
        self._letters(x, y, text, 12, color, _SANS + ' font-weight="bold"' * bold, anchor)

    def code(self, x: float, y: float, text: str, color: str = INK, size: float = 12, anchor: str = "start") -> None:
        self._letters(x, y, text, size, color, _MONO, anchor)

    def formula(self, x: float, y: float, runs: Sequence[Run], color: str = INK, size: float = 16) -> None:
        """Centred on x, on the baseline y."""
        x -= width(runs, size) / 2
        for run in runs:
            end = x + _letters(run.text, size)
            slant = _SERIF + ' font-style="italic"' * run.italic
            # Letters end where their indices begin, however wide the reader's font makes them.
            indexed = run.sub or run.sup
            self._letters(
                end if indexed else x + (end - x) / 2, y, run.text, size, color, slant, "end" if indexed else "middle"
            )
            for text, dy in ((run.sub, 0.27 * size), (run.sup, -0.42 * size)):
                if text:
                    self._letters(end + 0.5, y + dy, text, SMALL, color, slant)
            x += _advance(run, size)

    def box(self, x: float, y: float, w: float, h: float, color: str, fill: str, dashed: bool, hint: str) -> None:
        """A rounded box with its centre at (x, y); `hint` is shown by a pointer over it."""
        dash = ' stroke-dasharray="4 3"' * dashed
        self.add(
            f'<rect x="{number(x - w / 2)}" y="{number(y - h / 2)}" width="{number(w)}" height="{number(h)}" rx="7" '
            f'fill="{fill}" stroke="{color}" stroke-width="1.5"{dash}><title>{html.escape(hint)}</title></rect>'
        )

    def line(self, d: str, color: str, thick: float = 1.5, dashed: bool = False, **data: str) -> None:
        """A path; `data` are attributes data-…, which say what it means."""
        dash = ' stroke-dasharray="4 3"' * dashed
        meaning = "".join(f' data-{k.strip("_")}="{html.escape(v, quote=True)}"' for k, v in data.items())
        self.add(f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{number(thick)}"{dash}{meaning}/>')

    def head(self, x: float, y: float, color: str, right: bool = False) -> None:
        """The head of an arrow that ends at (x, y), coming from the right or, if `right`, from the left."""
        back = -7 if right else 7
        self.add(
            f'<path d="M{number(x)} {number(y)}l{back} -3.5v7z" fill="{color}" stroke="{color}" stroke-linejoin="round"/>'
        )

    def text(self, height: float) -> str:
        w, h = number(self._width), number(height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
            f'style="max-width:100%;height:auto"><title>{html.escape(self._title)}</title>'
            f'<rect width="{w}" height="{h}" fill="#fff"/>\n' + "\n".join(self._elements) + "\n</svg>\n"
        )
