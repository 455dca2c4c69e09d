"""`launch/colab.ipynb`, run from the first cell to the last; what it installs; what is saved in it.

Its outputs are saved anew by `.venv-test/bin/jupyter execute --inplace launch/colab.ipynb`.
"""

import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

REPOSITORY = pathlib.Path(__file__).parents[1]
PATH = REPOSITORY / "launch" / "colab.ipynb"
# A kernel is a process of its own: there, too, warnings of ours are errors.
STRICT = "import warnings\nfor module in ('bpevo', '__main__'):\n    warnings.filterwarnings('error', module=module)"
SHOWN = ("text/latex", "image/svg+xml", "image/png", "text/html")


def read() -> nbformat.NotebookNode:
    return nbformat.read(PATH, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cells) -> str:
    """Everything that the cells show as text."""
    outputs = [output for cell in cells for output in cell.outputs]
    shown = [text for o in outputs for form, text in o.get("data", {}).items() if form != "image/png"]
    return "\n".join([*shown, *(o.get("text", "") for o in outputs)])


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    notebook = read()
    notebook.cells.insert(0, new_code_cell(STRICT))
    folder = tmp_path_factory.mktemp("notebook")
    kept = {name: os.environ.get(name) for name in ("PYTHONPATH", "JAX_PLATFORMS")}
    os.environ |= {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    try:
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
        client.execute(cwd=str(folder))
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    notebook.cells.pop(0)
    return notebook, folder


def test_every_cell_runs_and_the_networks_learn(executed):
    notebook, folder = executed
    cells = code(notebook)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    linen, nnx, transformer = (float(n) for n in re.findall(r"accuracy on new digits: ([\d.]+)%", texts(cells)))
    assert linen > 85 and nnx > 60 and transformer > 60  # of ten classes
    assert (folder / "runs" / "notebook" / "run.sqlite").is_file()


def test_a_search_shows_one_line_of_progress_and_its_table(executed):
    (search,) = [cell for cell in code(executed[0]) if "bpevo.Search(" in cell.source]
    lines = [o.data["text/plain"] for o in search.outputs if "data" in o]
    progress = [line for line in lines if re.match(r"stage |compiling", line)]
    assert len(progress) == 1 and re.match(r"stage selection, evaluations \d+ of \d+", progress[0])
    assert any("backprop: g" in line for line in lines) and any("mlp-32 on digits" in line for line in lines)


def test_what_is_saved_is_what_it_shows(executed):
    saved = code(read())
    for kept, new in zip(saved, code(executed[0]), strict=True):
        forms = [{form for o in cell.outputs for form in o.get("data", {}) if form in SHOWN} for cell in (kept, new)]
        assert forms[0] == forms[1] and bool(kept.outputs) == bool(new.outputs), kept.source
    assert [cell.execution_count for cell in saved] == list(range(1, len(saved) + 1))
    assert {"text/latex", "image/svg+xml", "image/png", "text/html"} <= {
        form for cell in saved for o in cell.outputs for form in o.get("data", {})
    }
    assert not re.search(r"/(home|root|tmp|usr|opt|work|mnt|Users|content)\b", texts(saved))
    assert "Warning" not in texts(saved) and PATH.stat().st_size < 300_000


def test_its_first_cell_installs_from_what_the_variable_names_and_only_where_nothing_is(tmp_path):
    """Run by IPython, with a pip that notes what it is told."""
    first = code(read())[0].source
    (tmp_path / "pip.py").write_text("import sys; open('told', 'w').write('|'.join(sys.argv[1:]))")
    started = "from IPython.core.interactiveshell import InteractiveShell as S; import sys; S.instance().run_cell(sys.argv[1])"

    def told(cell: str, path: pathlib.Path | None) -> str:
        (tmp_path / "told").unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (tmp_path, path))))}
        subprocess.run([sys.executable, "-c", started, cell], cwd=tmp_path, env=environment, check=True, timeout=60)
        return (tmp_path / "told").read_text() if (tmp_path / "told").exists() else ""

    assert told(first, REPOSITORY) == ""
    absent = first.replace('find_spec("bpevo")', 'find_spec("a_bare_runtime")')
    assert told(absent, None) == "install|--quiet|..|pandas"
    address = re.sub(r'SOURCE = "[^"]*"', 'SOURCE = "a folder/b.whl"', absent)
    assert address != absent and told(address, None) == "install|--quiet|a folder/b.whl|pandas"
