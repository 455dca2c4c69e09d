"""report.html: one file without references to any other, readable on a phone. Every text goes through `html.escape`."""

import base64
import functools
import html
from collections.abc import Iterable, Sequence

from bpevo.evaluation.early_decisions import EarlyDecisions
from bpevo.evaluation.standings import Standing
from bpevo.evaluation.treatments import stored
from bpevo.report import drawing
from bpevo.report.ancestry import Ancestor
from bpevo.report.front import FRONT_COLUMNS, FRONT_TITLE, FrontRow, front_cells
from bpevo.report.leaderboard import BOARD_COLUMNS, LeaderboardRow, board_cells
from bpevo.report.overview import OVERVIEW_COLUMNS, Found, overview_cells
from bpevo.report.tables import COLUMNS, LEGEND, cells

# A table where it fits; on less than a desktop's width each row is a card: the rule, and below it the names and numbers.
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 76rem; margin: 0 auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
p, li, code { overflow-wrap: anywhere; }
p, ul { max-width: 60rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
th:first-child { min-width: 14rem; }
th.text:not(:first-child), td.text:not(:first-child) { overflow-wrap: break-word; }
tr.find td { font-weight: bold; }
tr.worse td { color: #777; }
figure { margin: 1rem 0; }
figure img { width: 100%; max-width: 46rem; height: auto; }
figure.rule { display: inline-block; max-width: 360px; vertical-align: top; margin: 1rem 1rem 1rem 0; }
figcaption, .note { font-size: 0.85rem; color: #555; }
img.equation { vertical-align: middle; max-width: 100%; }
@media (max-width: 75rem) {
  table, tbody, tr { display: block; }
  thead { display: none; }
  tr { border-bottom: 1px solid #ddd; padding: 0.5rem 0; }
  td, td.text { display: inline-block; border: 0; padding: 0 1rem 0 0; max-width: 100%; text-align: left; }
  td:first-child { display: block; padding: 0 0 0.25rem; }
  td:empty { display: none; }
  td:not(:first-child)::before { content: attr(data-column) " "; color: #777; font-weight: normal; }
}
"""


def _data_uri(image: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"


@functools.cache
def equation(text: str) -> str:
    """A treatment as an inline image of its equation with the text beneath; only the text where it is no treatment."""
    code = f"<code>{html.escape(text)}</code>"
    treatment = stored(text)
    if treatment is None:
        return code
    address = _data_uri(drawing.equation(treatment.expression.latex))
    image = f'<img class="equation" alt="{html.escape(text, quote=True)}" src="{address}">'
    return f"{image}<br>{code}"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def heading(level: int, text: str) -> str:
    return f"<h{level}>{html.escape(text)}</h{level}>"


def listing(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(i)}</li>" for i in items) + "</ul>"


def picture(svg: bytes, caption: str) -> str:
    image = f'<img alt="{html.escape(caption, quote=True)}" src="{_data_uri(svg)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


@functools.cache
def rule(text: str) -> str:
    """The picture of what feeds the signal of a treatment's rule; nothing where the text is no treatment."""
    treatment = stored(text)
    if treatment is None:
        return ""
    caption = html.escape(f"What feeds {treatment.expression}", quote=True)
    image = _data_uri(treatment.expression.draw().svg.encode())
    return f'<figure class="rule"><img alt="{caption}" src="{image}"><figcaption>{caption}</figcaption></figure>'


# Columns whose cells may break into lines.
_TEXTS = ("rule", "best rule", "search", "equation", "kind", "mutation", "vs closest control", "paper %")


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows are (class, cells); cells are HTML."""
    attributes = [f'class="text" data-column="{c}"' if c in _TEXTS else f'data-column="{c}"' for c in columns]
    names = [html.escape(c) for c in columns]
    head = "".join(f"<th {a}>{n}</th>" for a, n in zip(attributes, names, strict=True))
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td {a}>{c}</td>" for a, c in zip(attributes, cells, strict=True)) + "</tr>"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def standings_html(standings: Sequence[Standing]) -> str:
    made = []
    for row in standings:
        name = f"{html.escape(row.name)}<br>" if row.name else ""
        kind = "find" if row.find else "worse" if row.worse else ""
        made.append((kind, [name + equation(row.text), *map(html.escape, cells(row))]))
    return table(COLUMNS, made) + note(LEGEND)


def leaderboard_html(board: Sequence[LeaderboardRow]) -> str:
    made = []
    for row in board:
        label = f"{html.escape(row.label)}<br>" if row.label else ""
        texts = [row.kind + (f" ({row.status})" if row.status else ""), *board_cells(row)]
        made.append(("", [label + equation(row.equation), *map(html.escape, texts)]))
    return table(("equation", "kind", *BOARD_COLUMNS), made)


def overview_html(rows: Sequence[Found]) -> str:
    made = []
    for row in rows:
        rule, kind = (equation(row.best.equation), row.best.kind) if row.best else ("nothing yet", "")
        made.append(("", [html.escape(row.search), rule, *map(html.escape, (kind, *overview_cells(row)))]))
    return table(("search", "best rule", "kind", *OVERVIEW_COLUMNS), made)


def front_html(found: Sequence[FrontRow]) -> str:
    """Nothing where nothing was found."""
    made = [("", [equation(row.equation), *map(html.escape, (row.kind, *front_cells(row)))]) for row in found]
    return note(FRONT_TITLE.capitalize() + ":") + table(("equation", "kind", *FRONT_COLUMNS), made) if found else ""


def lineage_html(line: Sequence[Ancestor]) -> str:
    rows = []
    for a in line:
        changes = "; ".join(f"part {c.part + 1}, {c.gene}: {c.before} → {c.after}" for c in a.changes) or "initial"
        accuracy = "" if a.accuracy is None else f"{100 * a.accuracy:.2f}"
        rows.append(("", [equation(a.equation), str(a.id), html.escape(changes), accuracy]))
    return table(("equation", "id", "mutation", "validation %"), rows)


def early_decisions_html(found: Sequence[EarlyDecisions]) -> str:
    rows = []
    for d in found:
        third = d.correlations[max(0, len(d.correlations) // 3 - 1)]
        numbers = (f"{d.n}", f"{third:.2f}", f"{d.best:.2f}", f"{d.picked:.2f}", f"{d.regret:.2f}", f"{d.spent:.0%}")
        rows.append(("", [equation(d.text), *numbers]))
    columns = ("rule", "configurations", "rank corr. at 1/3", "best %", "picked %", "regret", "epochs")
    return table(columns, rows)


def page(title: str, sections: Iterable[str], every: float | None = None) -> str:
    """The whole page; a browser loads it again `every` so many seconds."""
    refresh = "" if every is None else f'<meta http-equiv="refresh" content="{every:g}">'
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'{refresh}<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
