"""Metrics beside a run: every figure against values worked out by hand, files that go on where they were cut off."""

import contextlib
import csv
import dataclasses
import datetime
import resource
import struct
import sys

import pytest
from absl import flags

from bpevo.command import definitions, plans
from bpevo.report import Metrics
from bpevo.report.metrics import COLUMNS, CURVE, Figures, contest
from bpevo.rules import parse
from bpevo.runs import Row, Rows, RunError
from bpevo.search import CONTROL_KEYS

FINISHED = "2026-01-02T03:04:05+00:00"


def row(stage: str, equation: str, accuracies: list, rate=0.1, status="done") -> Row:
    """One whose losses are what its accuracies lack to 1."""
    last = accuracies[-1]
    curve = {"eval_accuracy": accuracies, "train_accuracy": accuracies, "gradient_norm": [2.0] * len(accuracies)}
    curve |= {name: [None if a is None else 1 - a for a in accuracies] for name in ("eval_loss", "train_loss")}
    reason = "loss not finite" if status == "diverged" else ""
    return Row(
        stage=stage, equation=equation, learning_rate=rate, replicate=0, proposal=None, status=status, reason=reason,
        accuracy=None if status == "diverged" else last, rungs=0, curve=curve, seconds=1.5, finished=FINISHED,
    )  # fmt: skip


ROWS = Rows([
    row("control", "g", [0.5, 0.75]),
    row("trial", "fa", [0.90625]),  # no whole training: of no contest
    row("search", "fa", [0.90625, 0.25]),  # goes on where its trial ended: one more epoch
    row("control", "g", [0.25, 0.625], rate=0.3),  # below its best
    row("search", "gh * dh", [0.125, 0.984375]),  # backprop in other words is no find
    row("search", "dfa", [0.9375], status="stopped"),
    row("search", "sgn(g)", [0.5, None], status="diverged"),
    row("search", "min(g, fa)", [0.5, 0.5]),
    row("confirmation", "min(g, fa)", [0.5, 0.97]),
    row("selection", "g", [0.5, 0.75]),  # another contest
    row("selection", "fa", [0.5, 0.875]),
])  # fmt: skip
# By hand, after each of ROWS: contest, best, its rule, backprop, slot-epochs, diverged, stopped.
TOLD = [
    ("search", None, None, 0.75, 2, 0, 0),
    ("search", None, None, 0.75, 3, 0, 0),
    ("search", 0.25, "fa", 0.75, 4, 0, 0),
    ("search", 0.25, "fa", 0.75, 6, 0, 0),
    ("search", 0.25, "fa", 0.75, 8, 0, 0),
    ("search", 0.25, "fa", 0.75, 9, 0, 1),
    ("search", 0.25, "fa", 0.75, 11, 1, 1),
    ("search", 0.5, "min(g, fa)", 0.75, 13, 1, 1),
    ("search", 0.5, "min(g, fa)", 0.75, 15, 1, 1),
    ("selection", None, None, 0.75, 17, 1, 1),
    ("selection", 0.875, "fa", 0.75, 19, 1, 1),
]


def is_control(text: str) -> bool:
    return parse(text).key in CONTROL_KEYS


def metrics(kind: str, folder, rows, say=pytest.fail) -> Metrics:
    if kind == "tensorboard":
        pytest.importorskip("tensorboardX")
    return Metrics(kind, folder, rows, is_control, say)


def file_of(kind: str, folder):
    return folder / {"csv": "metrics.csv", "tensorboard": "events.out.tfevents.bpevo"}[kind]


KINDS = pytest.mark.parametrize("kind", ["csv", "tensorboard"])


def test_a_line_per_epoch_holds_the_curve_and_the_running_figures(tmp_path):
    writer = metrics("csv", tmp_path, ROWS[:2])
    writer.add(ROWS[2:3], 0.5)
    writer.add(ROWS[3:], 0.75)
    with open(file_of("csv", tmp_path), newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS and len(lines) == 20
    last = list({line["training"]: line for line in lines}.values())
    names = ("contest", "best", "best_equation", "backprop", "slot_epochs", "diverged", "stopped")
    assert [tuple(line[n] for n in names) for line in last] == [
        tuple("" if v is None else str(v) for v in told) for told in TOLD
    ]
    assert [line["training"] for line in last] == [str(n) for n in range(1, 12)]
    assert [line["occupancy"] for line in last] == ["", "", "0.5", *["0.75"] * 8]
    third = [line for line in lines if line["training"] == "3"]
    assert [[line[n] for n in ("epoch", *CURVE)] for line in third] == [
        ["1", "0.09375", "0.90625", "2.0", "0.09375", "0.90625"], ["2", "0.75", "0.25", "2.0", "0.75", "0.25"],
    ]  # fmt: skip
    of = ("finished", "stage", "equation", "learning_rate", "replicate", "status", "reason", "seconds", "accuracy")
    diverged = [line for line in lines if line["training"] == "7"][-1]
    assert [diverged[n] for n in of] == [
        FINISHED,
        "search",
        "sgn(g)",
        "0.1",
        "0",
        "diverged",
        "loss not finite",
        "1.5",
        "",
    ]
    assert diverged["eval_accuracy"] == "" and diverged["gradient_norm"] == "2.0"


def test_a_rule_without_a_right_answer_may_be_the_best_and_an_equal_one_does_not_take_its_place():
    figures, told = Figures(is_control), []
    for text, accuracy in (("fa", 0.0), ("dfa", 0.0), ("h", 0.5), ("hp", 0.5), ("gh * dh", 0.75)):
        figures.take(made := row("search", text, [accuracy]))
        told.append((figures.told(made)["best"], figures.told(made)["best_equation"]))
    assert told == [(0.0, "fa"), (0.0, "fa"), (0.5, "h"), (0.5, "h"), (0.5, "h")]
    on = dataclasses.replace(made, network="mlp-8")
    assert [contest(r) for r in (made, on, dataclasses.replace(on, stage="test"))] == [
        "search", "search on mlp-8", "test on mlp-8",
    ]  # fmt: skip


# A reader of event files by their specification alone: framed records with masked CRC-32C, protocol buffers by field number.


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def fields(data: bytes) -> dict[int, list]:
    """Values by field number: numbers, or bytes of what has a length."""
    found, place = {}, 0
    while place < len(data):
        key, place = varint(data, place)
        if key & 7 == 0:
            value, place = varint(data, place)
        elif key & 7 == 2:
            length, place = varint(data, place)
            value, place = data[place : place + length], place + length
        else:
            form = {1: "<d", 5: "<f"}[key & 7]
            (value,) = struct.unpack_from(form, data, place)
            place += struct.calcsize(form)
        found.setdefault(key >> 3, []).append(value)
    return found


def events(path) -> list[tuple[float, int, dict]]:
    """(wall time, step, values by tag) of each event after the first, which names the format."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        length, check = struct.unpack_from("<QI", data, place)
        content = data[place + 12 : place + 12 + length]
        assert check == masked(data[place : place + 8])
        assert struct.unpack_from("<I", data, place + 12 + length)[0] == masked(content)
        place += 16 + length
        found.append(fields(content))
    assert found[0] == {3: [b"brain.Event:2"]}
    told = []
    for event in found[1:]:
        values = {}
        for value in map(fields, fields(event[5][0])[1]):
            tag = value[1][0].decode()
            values[tag] = value[2][0] if 2 in value else fields(value[8][0])[8][0].decode()
        told.append((event[1][0], event[2][0], values))
    return told


def test_the_reader_of_event_files_counts_as_specified():
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert varint(b"\xac\x02", 0) == (300, 2)  # the example of the protocol buffers' documentation


def test_event_files_hold_the_same_by_tag_and_step(tmp_path):
    writer = metrics("tensorboard", tmp_path, ROWS[:2])
    writer.add(ROWS[2:], 0.5)
    told = events(file_of("tensorboard", tmp_path))
    assert [step for _, step, _ in told] == list(range(1, 21))  # the epochs of the trainings, one after the other
    assert {wall for wall, *_ in told} == {datetime.datetime.fromisoformat(FINISHED).timestamp()}
    assert told[3][2] == dict(zip([f"epoch/{n}" for n in CURVE], (0.09375, 0.90625, 2, 0.09375, 0.90625), strict=True))
    ends, names = [], ("best", "best_equation/text_summary", "backprop")
    for _, _, values in told:
        if "run/trainings" in values:
            of = next(tag.split("/")[0] for tag in values if tag.endswith("/backprop"))
            figures = (values.get(f"{of}/{n}") for n in names)
            ends.append((of, *figures, *(values[f"run/{n}"] for n in ("slot_epochs", "diverged", "stopped"))))
    assert ends == TOLD
    accuracies = [values.get("search/accuracy") for *_, values in told if "run/trainings" in values]
    assert accuracies[2:8] == [0.25, 0.625, 0.984375, 0.9375, None, 0.5]
    assert [values.get("run/occupancy") for *_, values in told if "run/trainings" in values] == [None] * 2 + [0.5] * 9
    assert "epoch/eval_accuracy" not in told[11][2] and told[11][2]["epoch/gradient_norm"] == 2  # it diverged


@KINDS
def test_a_file_goes_on_wherever_it_was_cut_off(tmp_path, kind):
    (tmp_path / "whole").mkdir()
    metrics(kind, tmp_path / "whole", ROWS)
    whole = file_of(kind, tmp_path / "whole").read_bytes()
    for length in [*range(0, len(whole), 53), len(whole) - 1, len(whole)]:
        file_of(kind, tmp_path).write_bytes(whole[:length])
        metrics(kind, tmp_path, ROWS)
        assert file_of(kind, tmp_path).read_bytes() == whole, length


@KINDS
def test_a_run_that_goes_on_repeats_nothing_and_keeps_what_only_its_process_knew(tmp_path, kind):
    first = metrics(kind, tmp_path, Rows())
    first.add(ROWS[:4], 0.5)
    before = file_of(kind, tmp_path).read_bytes()
    second = metrics(kind, tmp_path, ROWS[:4])
    assert file_of(kind, tmp_path).read_bytes() == before
    second.add([])
    second.add(ROWS[4:], 0.5)
    (tmp_path / "once").mkdir()
    metrics(kind, tmp_path / "once", Rows()).add(ROWS, 0.5)
    assert file_of(kind, tmp_path).read_bytes() == file_of(kind, tmp_path / "once").read_bytes()


@contextlib.contextmanager
def disk_of(size: int):
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@KINDS
def test_a_full_disk_is_said_once_and_made_good_by_the_next_start(tmp_path, kind):
    said = []
    writer = metrics(kind, tmp_path, ROWS[:3], said.append)
    with disk_of(file_of(kind, tmp_path).stat().st_size + 700):
        writer.add(ROWS[3:8])
        writer.add(ROWS[8:])
    assert len(said) == 1 and "metrics are no longer written to" in said[0] and "File too large" in said[0]
    writer.add(ROWS[8:])  # what it lacks comes first
    metrics(kind, tmp_path, ROWS)
    (tmp_path / "once").mkdir()
    metrics(kind, tmp_path / "once", ROWS)
    assert file_of(kind, tmp_path).read_bytes() == file_of(kind, tmp_path / "once").read_bytes()


def test_a_file_that_vanished_is_not_made_anew_without_its_beginning(tmp_path):
    said = []
    writer = metrics("csv", tmp_path, ROWS[:3], said.append)
    file_of("csv", tmp_path).unlink()
    writer.add(ROWS[3:])
    assert len(said) == 1 and not file_of("csv", tmp_path).exists()


@KINDS
def test_what_cannot_be_written_is_one_error_at_the_start(tmp_path, kind):
    with pytest.raises(RunError, match="cannot write metrics to .*nowhere.*: No such file or directory; "):
        metrics(kind, tmp_path / "nowhere", ROWS)
    path = file_of(kind, tmp_path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="it is there and holds something else; correct that or move it away"):
        metrics(kind, tmp_path, ROWS)
    assert path.read_text() == "a,b\n1,2\n"
    path.unlink()
    metrics(kind, tmp_path, ROWS)
    whole = path.read_bytes()
    with pytest.raises(RunError, match="holds metrics of another run: move it away"):
        metrics(kind, tmp_path, ROWS[:3])
    assert path.read_bytes() == whole
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="Is a directory"):
        metrics(kind, tmp_path, ROWS)


def test_an_event_file_that_is_damaged_is_named(tmp_path):
    metrics("tensorboard", tmp_path, ROWS)
    path = file_of("tensorboard", tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(RunError, match="it is damaged"):
        metrics("tensorboard", tmp_path, ROWS)


def test_tensorboard_is_asked_for_by_name_and_needed_only_then(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    values = flags.FlagValues()
    for define in (definitions.define_common, definitions.define_search):
        define(values)

    def plan(*arguments):
        values.unparse_flags()
        values(["launch", f"--workdir={tmp_path}", "--dataset=digits", "--model=mlp-8", *arguments])
        return plans.search_command(values)

    with pytest.raises(
        plans.UsageError, match="--metrics=tensorboard needs tensorboardX: pip install tensorboardX, or"
    ):
        plan("--metrics=tensorboard")
    assert plan("--metrics=csv").metrics == "csv" and plan().metrics is None
    metrics("csv", tmp_path, ROWS)
