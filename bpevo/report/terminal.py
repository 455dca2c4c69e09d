"""Tables of a terminal whose rows are a text with numbers: beside it where there is room, else below it."""

import dataclasses
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

LEAST = 24  # characters that a long text gets beside its numbers


@dataclasses.dataclass(frozen=True)
class Line:
    text: str
    numbers: Sequence[str]  # one for each column; empty where there is none
    style: str = ""


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Texts and numbers are shown as they are, never as markup, and nothing is cut off at any width."""

    title: str
    head: str  # over the texts
    columns: Sequence[str]  # over the numbers
    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        longest = max((cell_len(line.text) for line in self.lines), default=0)
        if self._room(options.max_width) >= max(min(LEAST, longest), cell_len(self.head)):
            yield self._beside()
        else:
            yield from self._below(options.max_width)

    def _room(self, width: int) -> int:
        """What the numbers, two blanks in every column and the borders leave for the texts."""
        cells = zip(self.columns, *(line.numbers for line in self.lines), strict=True)
        numbers = sum(max(map(cell_len, column)) for column in cells)
        return width - numbers - 2 * (len(self.columns) + 1) - (len(self.columns) + 2)

    def _beside(self) -> Table:
        table = Table(title=Text(self.title), title_justify="left")
        table.add_column(self.head, overflow="fold", ratio=1)
        for column in self.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for line in self.lines:
            table.add_row(*(Text(cell, style=line.style) for cell in (line.text, *line.numbers)))
        return table

    def _below(self, width: int) -> Iterator[Text]:
        yield Text(self.title, style="italic")
        for line in self.lines:
            yield Text(line.text, style=line.style, overflow="fold")
            named = [f"{c} {n}" for c, n in zip(self.columns, line.numbers, strict=True) if n]
            filled = "" if named else "  "
            for number in named:
                if filled and cell_len(filled) + 2 + cell_len(number) > width:
                    yield Text(filled, style="dim", overflow="fold")
                    filled = ""
                filled += f"  {number}"
            yield Text(filled, style="dim", overflow="fold")
