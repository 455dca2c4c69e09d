"""README.md does not rot: its code runs, its language table is complete, its commands are what CI runs."""

import pathlib
import re

import pytest

from bpevo import models
from bpevo.rules import BINARIES, OPERANDS, UNARIES

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_colab_lines_run_and_show_the_equation_printed_below_them():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    assert len(code.strip().splitlines()) <= 10
    scope = {}
    exec(code, scope)  # our own README
    assert set(scope["gradient"]) == {"Dense_0", "Dense_1", "Dense_2"}
    shown = re.search(r"^\$\$b_i\^p \\leftarrow (.*)\$\$$", README, re.M).group(1)
    assert scope["rule"]._repr_latex_() == rf"$\displaystyle b_i^p \leftarrow {shown}$"


def test_the_lines_for_a_network_of_ones_own_run(capsys):
    scope = {}
    codes = re.findall(r"```python\n(.*?)```", README, re.S)
    unit_by_unit = next(code for code in codes if "models.MODELS[" in code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "net", None)  # gone again afterwards
        for code in (*codes[1:3], unit_by_unit):
            exec(code, scope)  # our own README
    assert "params/Dense_0/kernel" in capsys.readouterr().out
    assert scope["logits"].shape == (32, 10) and scope["train_state"].step == 1


@pytest.mark.parametrize("name", [*OPERANDS, *UNARIES, *BINARIES])
def test_the_language_table_names_every_component(name):
    entry = UNARIES.get(name) or BINARIES.get(name)
    spelled = entry.spelling.format(x="x", y="y", c="0.1") if entry else name
    spelled = {"scale": "0.5*x", "clip": "clip(x, 0.5)", "add_noise": "add_noise(x, 0.1)"}.get(name, spelled)
    known = {f"unit_{axis}{order}" for axis in ("elem", "col", "row") for order in ("0", "1", "_ninf", "_inf")}
    if name in known:  # written as a family
        return
    short = spelled.removesuffix("(x)")
    assert f"`{spelled}`" in README or f"`{short}`" in README


def test_there_are_two_install_commands():
    assert len(re.findall(r"^python3 -m venv ", README, re.M)) == 2
