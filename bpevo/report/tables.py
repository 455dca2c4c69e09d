"""The standings as a table in the terminal, in Markdown and in LaTeX. Texts are data: each form escapes what it must."""

from collections.abc import Sequence

from bpevo.evaluation.standings import Standing, number
from bpevo.evaluation.treatments import stored
from bpevo.report.terminal import Line, TextTable
from bpevo.training import TRANSFORMS

COLUMNS = ("rule", "lr", "validation %", "test %", "n", "95 %", "vs backprop", "p (Holm)", "time", "paper %")
LEGEND = (
    "test %: mean ± sample standard deviation over n fresh seeds after training on the full training set; 95 %: half the "
    "t-interval of the mean; vs backprop: mean paired difference ± half its 95 % interval; p: two-sided paired t-test on "
    "shared seeds, Holm-corrected over the rows; bold: significantly better than tuned backprop at 5 %; lr: tuned on "
    "validation with the same budget for every row, * at the edge of the rates tried; time: an epoch's over backprop's."
)


def cells(row: Standing) -> list[str]:
    """The texts of COLUMNS after the rule, not escaped."""
    rate = "diverged" if row.learning_rate is None else f"{row.learning_rate:g}{'*' if row.at_edge else ''}"
    validation = "" if row.validation is None else f"{row.validation:.2f}"
    if row.selection:
        validation = number(row.selection)
    test = "" if row.test is None else number(row.test)
    if row.diverged:
        test = f"{test} ({row.diverged} diverged)".strip()
    margin = "" if row.test is None or row.test.n < 2 else f"± {row.test.margin:.2f}"
    difference = ""
    if row.difference:
        difference = f"{row.difference.pairs.mean:+.2f} ± {row.difference.pairs.margin:.2f}"
    p = "" if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
    cost = "" if row.cost is None else f"{row.cost:.2f}x"
    return [rate, validation, test, str(row.test.n) if row.test else "", margin, difference, p, cost, row.paper]


def title(row: Standing, text: str | None = None) -> str:
    """With the name of a baseline that is a rule; a transform is named in the text. `text` stands for the row's, escaped."""
    text = row.text if text is None else text
    return f"{row.name}: {text}" if row.name and row.name not in TRANSFORMS else text


def standings_table(standings: Sequence[Standing], name: str) -> TextTable:
    """For the terminal: without the columns that make it wider than one."""
    shown = ("lr", "test %", "n", "vs backprop", "p (Holm)", "time")
    lines = []
    for row in standings:
        values = dict(zip(COLUMNS[1:], cells(row), strict=True))
        style = "bold" if row.better else "dim" if row.worse else ""
        lines.append(Line(title(row), [values[c] for c in shown], style))
    return TextTable(f"{name}: test accuracy", "rule", shown, lines)


def code(text: str) -> str:
    """In a cell of a Markdown table."""
    return "`" + text.replace("|", r"\|") + "`"


def markdown(standings: Sequence[Standing]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for row in standings:
        texts = [title(row, code(row.text)), *(c.replace("*", r"\*") for c in cells(row))]
        if row.better:
            texts = [f"**{c}**" if c else "" for c in texts]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


_TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "^": r"\^{}", "~": r"\~{}"} | {
    c: "\\" + c for c in "&%$#_{}"
}


def latex_text(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def latex(standings: Sequence[Standing]) -> str:
    """A tabular; needs amsmath and amssymb (style sheets of most venues load them)."""
    lines = [r"\begin{tabular}{l" + "r" * (len(COLUMNS) - 1) + "}", r"\hline"]
    lines += [" & ".join(latex_text(c) for c in COLUMNS) + r" \\", r"\hline"]
    for row in standings:
        treatment = stored(row.text)
        rule = rf"$b_i^p \leftarrow {treatment.expression.latex}$" if treatment else latex_text(row.text)
        name = row.name or (treatment.transform if treatment else "")
        rule = f"{latex_text(name)}: {rule}" if name else rule
        texts = [latex_text(c) for c in cells(row)]
        if row.better:
            rule, texts = rf"\boldmath\textbf{{{rule}}}", [rf"\textbf{{{c}}}" if c else "" for c in texts]
        lines.append(" & ".join([rule, *texts]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"
