"""What XLA writes of a program is read as it is meant: types, instructions, and what the host launches."""

import re

import pytest

from bpevo.bench import hlo, thunks


@pytest.mark.parametrize(
    ("type_", "bytes_", "fast"),
    [
        ("f32[8,16]{1,0}", 512, False),
        ("bf16[3]{0}", 6, False),
        ("pred[16]{0}", 16, False),
        ("s8[16]{0}", 16, False),
        ("f16[16]{0}", 32, False),
        ("u64[16]{0}", 128, False),
        ("c128[16]{0}", 256, False),
        ("f8e4m3fn[16]{0}", 16, False),
        ("s4[16]{0}", 8, False),
        ("s4[3]{0}", 2, False),  # whole bytes
        ("u2[16]{0}", 4, False),
        ("opaque[16]", 0, False),
        ("f32[<=8,2]{1,0:S(0)}", 64, False),  # of at most eight rows; space 0 is the device's memory
        ("s32[2,3]{1,0:T(8,128)}", 4 * 8 * 128, False),  # padded to one tile
        ("f32[130,2,9]{0,2,1:T(8,128)}", 4 * 256 * 16 * 2, False),  # the minor axis is the first, the next the last
        ("f32[300]{0:T(256)}", 4 * 512, False),
        ("bf16[16,100]{1,0:T(8,128)(2,1)S(1)}", 2 * 16 * 128, True),
        ("u32[]{:S(2)}", 4, True),
    ],
)
def test_an_array_takes_its_padded_tiles(type_, bytes_, fast):
    (array,) = hlo.arrays(type_)
    assert (array.bytes, array.fast) == (bytes_, fast)


def test_a_tuple_has_the_arrays_of_its_elements():
    found = hlo.arrays("(s32[]{:T(128)}, f32[2,3]{1,0}, /*index=2*/(bf16[4]{0}, token[]))")
    assert [a.dims for a in found] == [(), (2, 3), (4,), ()] and [a.bytes for a in found] == [4, 24, 8, 0]


def test_text_without_an_entry_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule m")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("%y = f32[8,16]{1,0}", "an instruction that cannot be read: y = f32[8,16]{1,0} "),
        ("%y = f32[8,16]{1,0} negate(%x", "an instruction that does not end: f32[8,16]{1,0} negate(%x"),
    ],
)
def test_a_line_that_is_no_instruction_is_told(line, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        hlo.parse(f"ENTRY %main () -> f32[8,16] {{\n  %x = f32[8,16]{{1,0}} parameter(0)\n  ROOT {line} \n}}")


def test_the_entry_is_what_the_text_calls_so_wherever_it_stands():
    computation = "%{} () -> s32[] {{\n  ROOT %c = s32[] constant({})\n}}\n"
    text = computation.format("first", 1) + "ENTRY " + computation.format("main", 2) + computation.format("last", 3)
    computations, entry = hlo.parse(text)
    assert (list(computations), entry) == (["first", "main", "last"], "main")
    assert [c["c"].arguments for c in computations.values()] == ["1", "2", "3"]


def test_a_constant_that_names_an_instruction_reads_none():
    computations, entry = hlo.parse(
        'ENTRY %main () -> s8[2] {\n  ROOT %c = s8[2]{0} constant("%x"), metadata={op_name="f"}\n}'
    )
    constant = computations[entry]["c"]
    assert (constant.operands, constant.arguments, constant.label, constant.root) == ((), '"%x"', "f", True)
    assert constant.called("to_apply") == ""


SEQUENCE = """000: kCommandBuffer [source | next=003 (1)]
    001: kWhile [source | sink]
        condition:
        body:
            002: kConditional [source | sink]
003: kWhile         [prev=000 (1) | next=006 (1)]
condition:
    004: kCustomKernel [source | sink] loop_compare_fusion
  body:
    000: kCommandBuffer [source | next=005 (1) ]
        005: kWhile [source | sink]
    006: kConditional [source | sink]
    007: kCommandBuffer [source | sink]
        005: kWhile [source | sink]
000: kWhile         [prev=006 (1) | sink]
008: kConditional   [prev=006 (1) | sink]
"""
THUNK = """thunk_metadata {
  thunk_info {
    profile_annotation: "%s"
    thunk_id: %s
  }
  thunk_kind: "k"
}
"""
NAMES = (("while.1", 1), ("conditional.2", 2), ("while.3", 3), ("while.5", 5), ("conditional.6", 6))
METADATA = "".join(THUNK % named for named in NAMES)
METADATA += (
    'thunk_metadata {\n  thunk_info {\n    profile_annotation: "while.0"\n  }\n}\n'  # the number 0 is not written
)


def test_what_stands_outside_of_command_buffers_is_the_host_s(tmp_path):
    """One of them has no metadata; of the programs dumped the largest counts."""
    host = {"while.3", "conditional.6", "while.0", "thunk 8"}
    assert thunks.on_host(SEQUENCE, METADATA) == host
    assert thunks.read(tmp_path) is None
    texts = ("001: kWhile\n", SEQUENCE, "002: kConditional\n003: kWhile\n")
    for number, text in enumerate(texts):
        (tmp_path / f"module_{number}.jit_many.thunk_sequence_after_thunk_passes.txt").write_text(text)
    assert thunks.read(tmp_path) is None
    for number, text in enumerate(("", METADATA, "")):
        (tmp_path / f"module_{number}.jit_many.thunk_metadata.txt").write_text(text)
    assert thunks.read(tmp_path) == host
