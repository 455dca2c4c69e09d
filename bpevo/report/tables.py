"""The standings as a table in the terminal, in Markdown and in LaTeX. Texts are data: each form escapes what it must."""

from collections.abc import Sequence

from bpevo.evaluation.significance import Difference
from bpevo.evaluation.standings import Standing, number
from bpevo.evaluation.treatments import stored
from bpevo.report.terminal import Line, TextTable

COLUMNS = (
    "rule", "kind", "lr", "validation %", "test %", "n", "95 %", "vs backprop", "vs closest control", "p (Holm)", "detectable",
    "paper %",
)  # fmt: skip
LEGEND = (
    "kind: what the rule keeps of backprop's signal in a unit; lr: tuned on validation, its grid grown by factors of 2 until the "
    "best is inside, by the same policy for every row, * where it still lies at the edge; test %: mean ± sample standard "
    "deviation over n fresh seeds after training on the full training set; 95 %: half the t-interval of the mean; vs backprop "
    "and vs closest control: mean paired difference ± half its 95 % interval; p: the largest of the one-sided paired t-tests on "
    "shared seeds against each control, Holm-corrected over the rules; unfair: no verdict, see above; bold: a find, p below "
    "5 %; detectable: the difference to that control that n seeds would have shown with a chance of 80 %."
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
    hurdle = f"{_difference(row.over_hurdle)} ({row.hurdle})" if row.over_hurdle else ""
    p = "" if row.p is None else probability(row.p)
    if row.unfair and row.test:
        p = "unfair"
    least = "" if row.detectable is None else f"{row.detectable:.2f}"
    n = str(row.test.n) if row.test else ""
    return [
        row.kind, rate, validation, test, n, margin, _difference(row.difference), hurdle, p, least, row.paper
    ]  # fmt: skip


def probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _difference(difference: Difference | None) -> str:
    return f"{difference.pairs.mean:+z.2f} ± {difference.pairs.margin:.2f}" if difference else ""


def title(row: Standing, text: str | None = None) -> str:
    """With the name of backprop and the zero signal. `text` stands for the row's, escaped."""
    text = row.text if text is None else text
    return f"{row.name}: {text}" if row.name else text


def standings_table(standings: Sequence[Standing], name: str) -> TextTable:
    """For the terminal: without the columns that make it wider than one."""
    shown = ("kind", "lr", "test %", "n", "vs backprop", "p (Holm)", "detectable")
    lines = []
    for row in standings:
        values = dict(zip(COLUMNS[1:], cells(row), strict=True))
        style = "bold" if row.find else "dim" if row.worse else ""
        lines.append(Line(title(row), [values[c] for c in shown], style))
    return TextTable(f"{name}: test accuracy", "rule", shown, lines)


def code(text: str) -> str:
    """In a cell of a Markdown table."""
    return "`" + text.replace("|", r"\|") + "`"


def markdown(standings: Sequence[Standing]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    for row in standings:
        texts = [title(row, code(row.text)), *(c.replace("*", r"\*").replace("|", r"\|") for c in cells(row))]
        if row.find:
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
        name = row.name or (" ".join(filter(None, (treatment.transform, treatment.optimizer))) if treatment else "")
        rule = f"{latex_text(name)}: {rule}" if name else rule
        texts = [latex_text(c) for c in cells(row)]
        if row.find:
            rule, texts = rf"\boldmath\textbf{{{rule}}}", [rf"\textbf{{{c}}}" if c else "" for c in texts]
        lines.append(" & ".join([rule, *texts]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"
