"""A workdir that is taken away, shared, copied, or on a file system that refuses: the true reason, and nothing is lost."""

import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
from test_runs import DISTURBED, StandIn, python, rows, search

from bpevo.runs import RunDatabase, RunError

REPOSITORY = pathlib.Path(__file__).parents[1]


def after(count: int, act):
    """A watcher that acts once, when so many rows are stored."""
    done = []

    def watch(made, _):
        if len(made.rows) >= count and not done:
            done.append(True)
            act()

    return watch


def test_a_workdir_that_is_deleted_ends_the_search_at_its_next_store(tmp_path):
    workdir = tmp_path / "run"
    stored = []

    def delete():
        stored.append(len(rows(workdir)["evaluations"]))
        shutil.rmtree(workdir)

    trainer = StandIn(4)
    with pytest.raises(RunError, match=r"run\.sqlite was deleted, moved or replaced.*start again in another --workdir"):
        search(workdir, DISTURBED, trainer, after(10, delete))
    assert trainer.trained <= stored[0] + 2 * 4  # it did not train on to its end
    assert not (workdir / "run.sqlite").exists()


def test_a_run_that_is_moved_away_is_whole_and_continues(tmp_path):
    workdir, kept = tmp_path / "run", tmp_path / "kept"
    with pytest.raises(RunError, match="was deleted, moved or replaced"):
        search(workdir, DISTURBED, StandIn(4), after(10, lambda: workdir.rename(kept)))
    search(kept, DISTURBED, StandIn(4))
    search(tmp_path / "undisturbed", DISTURBED, StandIn(4))
    assert rows(kept) == rows(tmp_path / "undisturbed")


def test_a_deleted_lock_stops_the_first_writer_and_the_run_stays_whole(tmp_path):
    workdir = tmp_path / "run"

    def second_writer():
        (workdir / "lock").unlink()
        code = "import sys, test_runs as t; t.search(sys.argv[1], t.DISTURBED, t.StandIn(4))"
        process = python(code, workdir)
        process.communicate(timeout=120)
        assert process.returncode == 0

    with pytest.raises(RunError, match=r"lock was deleted or replaced .* so this one stops") as caught:
        search(workdir, DISTURBED, StandIn(4), after(10, second_writer))
    assert "move" not in str(caught.value) and "damaged" not in str(caught.value)
    search(tmp_path / "undisturbed", DISTURBED, StandIn(4))
    assert rows(workdir) == rows(tmp_path / "undisturbed")


def test_two_writers_that_meet_in_a_row_are_not_told_to_throw_the_file_away(tmp_path):
    with RunDatabase.writing(tmp_path) as database:
        database.check_settings({"max_parts": 3}, {}, ())
        with (
            pytest.raises(RunError, match="another process wrote into this run at the same time"),
            RunDatabase._open(database.path, lambda: None) as other,
            other._transaction() as c,
        ):
            c.execute("INSERT INTO meta VALUES ('settings', '{}')")


def killed_search(workdir: str) -> None:
    """Run in a process of its own, which kills itself in the middle of the search."""
    search(workdir, DISTURBED, StandIn(4), after(40, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_live_run_is_copied_whole_though_its_main_file_alone_is_not(tmp_path):
    """A search that is killed leaves rows in the write-ahead log."""
    workdir = tmp_path / "run"
    child = python("import sys, test_places as t; t.killed_search(sys.argv[1])", workdir)
    child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL
    (tmp_path / "alone").mkdir()
    shutil.copy(workdir / "run.sqlite", tmp_path / "alone")
    said = subprocess.run(
        [sys.executable, "-m", "bpevo.doctor", f"--workdir={workdir}", f"--copy_to={tmp_path / 'copy'}"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    whole = rows(workdir)
    assert rows(tmp_path / "copy") == whole and len(whole["evaluations"]) >= 40
    with contextlib.closing(sqlite3.connect(tmp_path / "alone" / "run.sqlite")) as c:  # why the command is needed
        tables = {name for (name,) in c.execute("SELECT name FROM sqlite_master")}
        assert "evaluations" not in tables or c.execute("SELECT count(*) FROM evaluations").fetchone()[0] < 40
    with RunDatabase.reading(workdir) as database, pytest.raises(RunError, match="is there already"):
        database.copy_to(tmp_path / "copy")


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/* A file system that cannot lock, or cannot map a file shared between processes, as some network ones. */
static int refuses(const char *what) { const char *r = getenv("REFUSES"); return r && !strcmp(r, what); }

int flock(int fd, int operation) {
  if (refuses("flock")) { errno = ENOLCK; return -1; }
  return ((int (*)(int, int)) dlsym(RTLD_NEXT, "flock"))(fd, operation);
}

static void *map(const char *name, void *a, size_t n, int p, int f, int fd, off_t o) {
  if (refuses("mmap") && fd >= 0 && (f & MAP_SHARED) && (p & PROT_WRITE)) { errno = ENODEV; return MAP_FAILED; }
  return ((void *(*)(void *, size_t, int, int, int, off_t)) dlsym(RTLD_NEXT, name))(a, n, p, f, fd, o);
}
void *mmap(void *a, size_t n, int p, int f, int fd, off_t o) { return map("mmap", a, n, p, f, fd, o); }
void *mmap64(void *a, size_t n, int p, int f, int fd, off_t o) { return map("mmap64", a, n, p, f, fd, o); }
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> pathlib.Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("a C compiler is needed to stand between Python and the kernel")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"


@pytest.mark.parametrize(
    ("refuses", "reason"),
    [
        ("flock", "cannot lock files (No locks available)"),
        ("mmap", "cannot share memory or locks between processes"),
    ],
)
def test_a_file_system_that_refuses_is_called_so(shim, tmp_path, refuses, reason):
    code = "import sys, test_runs as t; t.search(sys.argv[1], t.DISTURBED, t.StandIn(4))"
    environment = os.environ | {"LD_PRELOAD": str(shim), "REFUSES": refuses}
    environment["PYTHONPATH"] = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, env=environment, timeout=120
    )
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode and reason in message and "put --workdir on a local disk" in message, done.stderr
    assert "another process" not in message and "disk is full" not in message
