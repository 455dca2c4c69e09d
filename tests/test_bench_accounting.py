"""The account of a compiled program equals what one counts by hand in its text, and what small programs do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpevo.bench.accounting import Account, Counts, Habits, Parts

MATRIX = 4 * 8 * 16  # bytes of f32[8,16]


def account(body: str, computations: str = "", **kwargs) -> Account:
    return Account(f"HloModule m\n\n{computations}\nENTRY %main (x: f32[8,16]) -> f32[8,16] {{\n{body}\n}}\n", **kwargs)


def test_counts_add_up_field_by_field():
    assert dataclasses.astuple(Counts()) == (0,) * 9
    ones, all_ = Counts(*[1.0] * 9), Counts(*range(9))
    assert ones.plus(all_, 3) == Counts(*(1 + 3 * n for n in range(9))) and ones.plus(all_) == Counts(*range(1, 10))
    assert all_.over(4) == Counts(*(n / 4 for n in range(9)))


def test_a_kernel_reads_each_operand_once_and_writes_its_result():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} bitcast(%x)
  %s = f32[8,16]{1,0} multiply(%x, %x)
  ROOT %y = f32[8,16]{1,0} add(%s, %b)"""
    ).counts()
    assert (counts.kernels, counts.bytes) == (2, 2 * MATRIX + 3 * MATRIX)


def test_a_fusion_reads_the_slices_that_it_takes_and_updates_in_place():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  %i = s32[] constant(3)
  ROOT %f = f32[8,16]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused""",
        """%fused (p: f32[8,16], q: s32[]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,16}
  %new = f32[1,16]{1,0} negate(%row)
  ROOT %u = f32[8,16]{1,0} dynamic-update-slice(%p, %new, %q, %zero)
}
""",
    ).counts()
    row, index = 4 * 16, 4
    assert (counts.kernels, counts.bytes) == (1, row + index + row)


def test_a_fusion_that_also_reads_the_whole_reads_the_whole():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  ROOT %f = (f32[1,16]{1,0}, f32[8,16]{1,0}) fusion(%x), kind=kLoop, calls=%fused""",
        """%fused (p: f32[8,16]) -> (f32[1,16], f32[8,16]) {
  %p = f32[8,16]{1,0} parameter(0)
  %row = f32[1,16]{1,0} slice(%p), slice={[0:1], [0:16]}
  %all = f32[8,16]{1,0} negate(%p)
  ROOT %t = (f32[1,16]{1,0}, f32[8,16]{1,0}) tuple(%row, %all)
}
""",
    ).counts()
    assert counts.bytes == MATRIX + 4 * 16 + MATRIX


def test_a_kernel_of_ones_own_moves_what_its_habits_say_and_without_such_all_and_is_guessed():
    text = """  %x = f32[8,16]{1,0} parameter(0)
  ROOT %y = f32[8,16]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/a_pass/call"}"""
    known = account(text).counts(Habits(kernels={"a_pass": Parts([1.0, 0.25], [0.5])}))
    assert (known.kernels, known.bytes, known.guessed) == (1, 1.75 * MATRIX, 0)
    guessed = account(text).counts(Habits(kernels={"another": Parts([0.0, 0.0], [0.0])}))
    assert (guessed.kernels, guessed.bytes, guessed.guessed) == (1, 3 * MATRIX, 1)


@pytest.mark.parametrize("parts", [Parts([1.0], [1.0]), Parts([1.0, 1.0], [1.0, 1.0])])
def test_habits_of_another_number_of_arrays_are_an_error(parts):
    text = """  %x = f32[8,16]{1,0} parameter(0)
  ROOT %y = f32[8,16]{1,0} custom-call(%x, %x), custom_call_target="tpu_custom_call", metadata={op_name="a_pass"}"""
    with pytest.raises(ValueError, match="zip"):
        account(text).counts(Habits(kernels={"a_pass": parts}))


ROW, FOUR = 4 * 16, 4 * 4  # bytes of f32[1,16], of s32[4]


@pytest.mark.parametrize(
    ("line", "slow", "fast"),
    [
        # Reads the update and writes it into its place in the first operand.
        ("f32[8,16]{1,0} dynamic-update-slice(%x, %row, %i, %i)", 2 * ROW, 0),
        ("f32[8,16]{1,0:S(1)} dynamic-update-slice(%f, %row, %i, %i)", ROW, ROW),
        ("f32[8,16]{1,0} dynamic-update-slice(%x, %fastrow, %i, %i)", ROW, ROW),
        # Reads indices and updates, writes these.
        ("f32[8,16]{1,0} scatter(%x, %k, %row), to_apply=%add", FOUR + 2 * ROW, 0),
        ("f32[8,16]{1,0:S(1)} scatter(%f, %k, %row), to_apply=%add", FOUR + ROW, ROW),
        # Reads as much of the first as it gives.
        ("f32[1,16]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,16}", 2 * ROW, 0),
        ("f32[4,16]{1,0} gather(%f, %k), offset_dims={1}", 4 * ROW, 4 * ROW),
        ("f32[1,16]{1,0:S(1)} slice(%x), slice={[0:1], [0:16]}", ROW, ROW),
        # Of each array the memory that it lies in.
        ("(f32[8,16]{1,0}, f32[1,16]{1,0:S(1)}) sort(%x, %fastrow), to_apply=%add", 2 * MATRIX, 2 * ROW),
        # Names for what exists already; a buffer that is not written yet.
        ("f32[8,16]{1,0} add-dependency(%x, %i)", 0, 0),
        ("f32[8,16]{1,0} async-update(%x)", 0, 0),
        ("f32[8,16]{1,0} domain(%x)", 0, 0),
        ('f32[8,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0, 0),
    ],
)
def test_a_kernel_that_touches_parts_moves_these(line, slow, fast):
    text = f"""  %x = f32[8,16]{{1,0}} parameter(0)
  %f = f32[8,16]{{1,0:S(1)}} parameter(1)
  %row = f32[1,16]{{1,0}} parameter(2)
  %fastrow = f32[1,16]{{1,0:S(1)}} parameter(3)
  %i = s32[] parameter(4)
  %k = s32[4]{{0}} parameter(5)
  ROOT %y = {line}"""
    counts = account(text).counts()
    assert (counts.bytes, counts.fast_bytes, counts.kernels) == (slow, fast, int(slow > 0))


@pytest.mark.parametrize(
    ("body", "slow", "fast"),
    [
        # An update in place, then a slice of the same: the slice alone is read. The other parameters are not read.
        (
            """%u = f32[8,16]{1,0} dynamic-update-slice(%p, %row, %i, %i)
  %s = f32[1,16]{1,0} slice(%p), slice={[0:1], [0:16]}
  ROOT %t = (f32[8,16]{1,0}, f32[1,16]{1,0}) tuple(%u, %s)""",
            ROW + 3 * ROW + 4,
            0,
        ),
        # Slices that overlap are no more than the whole; through a change of shape.
        (
            """%b = f32[128]{0} bitcast(%p)
  %one = f32[96]{0} slice(%b), slice={[0:96]}
  %two = f32[96]{0} slice(%b), slice={[32:128]}
  ROOT %s = f32[96]{0} add(%one, %two)""",
            MATRIX + 4 * 96,
            0,
        ),
        (
            """%b = f32[128]{0} bitcast(%p)
  ROOT %s = f32[96]{0} slice(%b), slice={[0:96]}""",
            2 * 4 * 96,
            0,
        ),
        # Indices are read whole.
        ("ROOT %g = f32[2]{0} gather(%p, %k), offset_dims={}", 2 * 8 + FOUR, 0),
        # Updates behind a change of shape are written in place, where the result lies: a row; for a scatter its updates.
        (
            """%u = f32[8,16]{1,0} dynamic-update-slice(%p, %row, %i, %i)
  %b = f32[128]{0} bitcast(%u)
  ROOT %c = f32[128]{0:S(1)} bitcast(%b)""",
            ROW + 4,
            ROW,
        ),
        (
            """%u = f32[8,16]{1,0} scatter(%p, %k, %row), to_apply=%add
  ROOT %b = f32[128]{0} bitcast(%u)""",
            FOUR + 2 * ROW,
            0,
        ),
        # A parameter in memory on the chip.
        ("ROOT %n = f32[1,16]{1,0} negate(%q)", ROW, ROW),
    ],
)
def test_a_fusion_moves_what_its_instructions_touch(body, slow, fast):
    fused = f"""%fused (p: f32[8,16]) -> f32[8,16] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  %q = f32[1,16]{{1,0:S(1)}} parameter(1)
  %row = f32[1,16]{{1,0}} parameter(2)
  %i = s32[] parameter(3)
  %k = s32[4]{{0}} parameter(4)
  {body}
}}
"""
    counts = account("  ROOT %f = f32[8,16]{1,0} fusion(), kind=kLoop, calls=%fused", fused).counts()
    assert (counts.bytes, counts.fast_bytes, counts.kernels) == (slow, fast, 1)


def test_memory_on_the_chip_is_counted_apart_and_a_copy_beside_the_kernels_is_none():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  %c = (f32[8,16]{1,0:S(1)}, f32[8,16]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %d = f32[8,16]{1,0:S(1)} copy-done(%c)
  ROOT %y = f32[8,16]{1,0} negate(%d)"""
    ).counts()
    assert (counts.kernels, counts.bytes, counts.fast_bytes) == (1, 2 * MATRIX, 2 * MATRIX)


def test_an_asynchronous_slice_moves_the_slice_and_an_asynchronous_fusion_what_it_would_otherwise():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  %i = s32[] constant(3)
  %s = ((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:2], [0:16]}
  %e = f32[2,16]{1,0:S(1)} slice-done(%s)
  %f = ((f32[8,16]{1,0}, s32[]), f32[1,16]{1,0}, u32[]) fusion-start(%x, %i), kind=kLoop, calls=%fused
  ROOT %d = f32[1,16]{1,0} fusion-done(%f)""",
        """%fused (p: f32[8,16], q: s32[]) -> f32[1,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,16]{1,0} dynamic-slice(%p, %q, %zero), dynamic_slice_sizes={1,16}
}
""",
    ).counts()
    row, index = 4 * 16, 4
    assert (counts.kernels, counts.bytes, counts.fast_bytes) == (1, 2 * row + (row + index + row), 2 * row)


LOOP = """%body (t: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[8,16]{1,0} get-tuple-element(%t), index=1
  %w = f32[8,16]{1,0} negate(%v)
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%i, %w)
}
%condition (t: (s32[], f32[8,16])) -> pred[] {
  %t = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] %LIMIT%
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
"""
ENTRY = """  %x = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[8,16]{1,0}) tuple(%zero, %x)
  %l = (s32[], f32[8,16]{1,0}) while(%t), condition=%condition, body=%body, metadata={op_name="jit(f)/outer/turns/while"}%MORE%
  ROOT %y = f32[8,16]{1,0} get-tuple-element(%l), index=1"""


def test_computations_that_are_called_count_as_often_as_they_are():
    counts = account(
        """  %x = f32[8,16]{1,0} parameter(0)
  %a = f32[8,16]{1,0} call(%x), to_apply=%twice
  %s = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-start(%a), calls=%once
  %u = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-update(%s)
  %d = f32[8,16]{1,0} async-done(%u)
  ROOT %y = f32[8,16]{1,0} call(%d), to_apply=%once""",
        BRANCHES,
    ).counts()
    assert (counts.kernels, counts.bytes) == (2 + 1 + 1, 4 * 2 * MATRIX)


LARGEST = """%small (t: s32[]) -> s32[] {
  %t = s32[] parameter(0)
  %a = f32[225]{0} parameter(1)
  ROOT %n = f32[225]{0} negate(%a)
}
%even (t: s32[]) -> s32[] {
  %a = f32[112]{0} parameter(0)
  %b = f32[120]{0:S(1)} parameter(1)
  %m = f32[112]{0} negate(%a)
  ROOT %n = f32[120]{0:S(1)} negate(%b)
}
%large (t: s32[]) -> s32[] {
  %a = f32[150]{0} parameter(0)
  %b = f32[88]{0:S(1)} parameter(1)
  %m = f32[150]{0} negate(%a)
  ROOT %n = f32[88]{0:S(1)} negate(%b)
}
%never (t: s32[]) -> pred[] {
  ROOT %p = pred[] parameter(0)
}
"""


def test_of_loops_of_one_length_the_one_that_moves_most_counts():
    loops = "\n".join(
        f'  %{b} = s32[] while(%t), condition=%never, body=%{b}, backend_config={{"known_trip_count":{{"n":"1000"}}}}'
        for b in ("small", "large", "even")
    )
    found = account(f"  %t = s32[] parameter(0)\n{loops}\n  ROOT %y = s32[] add(%t, %t)", LARGEST)
    assert (found.turn(1000).bytes, found.turn(1000).fast_bytes) == (2 * 4 * 150, 2 * 4 * 88)


@pytest.mark.parametrize(
    ("root", "turns"),
    [
        ("ROOT %w = pred[] fusion(%i, %n), kind=kLoop, calls=%below", 7),
        ("ROOT %w = pred[] fusion(%n, %i), kind=kLoop, calls=%above", 7),
        ("ROOT %w = pred[] fusion(%i), kind=kLoop, calls=%within", 9),
        ("ROOT %gt = pred[] compare(%i, %n), direction=GT", None),
        ("ROOT %gt = pred[] and(%i, %n)", None),
        ("ROOT %gt = pred[] get-tuple-element(%t), index=2", None),
    ],
)
def test_a_loop_s_length_is_the_constant_that_its_counter_stays_below(root, turns):
    fused = """%below (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
%above (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %lt = pred[] compare(%b, %a), direction=LT
}
%within (a: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] constant(9)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}
"""
    text = LOOP.replace("%LIMIT%", "constant(7)").replace("ROOT %lt = pred[] compare(%i, %n), direction=LT", root)
    found = account(ENTRY.replace("%MORE%", ""), fused + text)
    counts = found.counts(Habits(turns={"turns": 3}))
    assert counts.turns == (0 if turns else 4)
    if turns:
        assert counts.kernels == turns and found.turn(turns).kernels == 1
        for other in (turns - 1, turns + 1):
            with pytest.raises(ValueError, match=f"no loop of {other} turns"):
                found.turn(other)


def test_a_turn_runs_by_the_habits():
    kernel = 'custom-call(%v), custom_call_target="tpu_custom_call", metadata={op_name="a_pass"}'
    found = account(ENTRY.replace("%MORE%", ""), LOOP.replace("%LIMIT%", "constant(7)").replace("negate(%v)", kernel))
    assert found.turn(7, Habits(kernels={"a_pass": Parts([0.5], [0.25])})).bytes == 0.75 * MATRIX


def test_what_stands_in_a_turn_is_counted_once_however_often_it_is_called():
    """A conditional, whose branches call one computation with a loop; in that loop's body and predicate a conditional each."""
    inside = """%inner_body (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %c = s32[] conditional(%p, %p), branch_computations={%leaf, %leaf}
}
%inner_condition (p: s32[]) -> pred[] {
  %p = s32[] parameter(0)
  ROOT %c = pred[] conditional(%p, %p), true_computation=%leaf, false_computation=%leaf
}
%leaf (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}
%shared (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %l = s32[] while(%p), condition=%inner_condition, body=%inner_body
}
%one (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %l = s32[] call(%p), to_apply=%shared
}
%other (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %s = (s32[], s32[]) async-start(%p), calls=%shared
  ROOT %l = s32[] async-done(%s)
}
"""
    body = LOOP.replace("%LIMIT%", "constant(7)").replace(
        "  %w = ", "  %c = s32[] conditional(%i, %i, %i), branch_computations={%one, %other}\n  %w = "
    )
    assert account(ENTRY.replace("%MORE%", ""), inside + body).written(7) == (3, 1)
    assert account(ENTRY.replace("%MORE%", ""), inside + body).written(8) == (0, 0)


@pytest.mark.parametrize(
    ("limit", "more"),
    [
        (
            "get-tuple-element(%t), index=0",
            ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0"}}',
        ),
        ("constant(7)", ""),
    ],
)
def test_a_loop_of_known_length_takes_no_decision(limit, more):
    found = account(ENTRY.replace("%MORE%", more), LOOP.replace("%LIMIT%", limit))
    counts = found.counts()
    assert (counts.kernels, counts.bytes, counts.turns, counts.decisions) == (7, 7 * 2 * MATRIX, 0, 0)
    assert found.turn(7).bytes == 2 * MATRIX and found.written(7) == (0, 0)
    with pytest.raises(ValueError, match="no loop of 8 turns"):
        found.turn(8)


def test_a_loop_whose_length_depends_on_data_asks_once_more_than_it_turns():
    text = LOOP.replace("%LIMIT%", "get-tuple-element(%t), index=0")
    for on_host, decisions in ((None, 3.5), ({"l"}, 3.5), (set(), 0)):
        counts = account(ENTRY.replace("%MORE%", ""), text, on_host=on_host).counts(Habits(turns={"turns": 2.5}))
        assert (counts.turns, counts.decisions, counts.guessed) == (3.5, decisions, 0)
        assert counts.kernels == 2.5 + 3.5 and counts.bytes == 2.5 * 2 * MATRIX + 3.5 * (4 + 4 + 1)
    unknown = account(ENTRY.replace("%MORE%", ""), text).counts(Habits(turns={"others": 9}))
    assert unknown.guessed == unknown.turns == 2


BRANCHES = """%none (p: f32[8,16]) -> f32[8,16] {
  ROOT %p = f32[8,16]{1,0} parameter(0)
}
%once (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %n = f32[8,16]{1,0} negate(%p)
}
%twice (p: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %n = f32[8,16]{1,0} negate(%p)
  ROOT %m = f32[8,16]{1,0} abs(%n)
}
"""


def test_branches_count_by_their_shares_in_the_innermost_known_scope():
    text = """  %x = f32[8,16]{1,0} parameter(0)
  %k = s32[] constant(1)
  ROOT %c = f32[8,16] conditional(%k, %x, %x, %x), branch_computations={%none, %once, %twice}, metadata={op_name="a/load/x"}"""
    habits = Habits(branches={"load": (0.5, 0.3, 0.2), "a": (1, 0, 0), "load/x": (0, 0, 1)})
    counts = account(text, BRANCHES, on_host={"c"}).counts(habits)
    assert counts.kernels == pytest.approx(0.3 + 2 * 0.2) and (counts.branches, counts.decisions, counts.guessed) == (
        1,
        1,
        0,
    )
    # No such scope; another number of branches.
    for unknown in (Habits(), Habits(branches={"load": (0.5, 0.5)}), Habits(branches={"load": (0.5, 0.5, 0, 0)})):
        counts = account(text, BRANCHES, on_host=set()).counts(unknown)
        assert counts.kernels == pytest.approx(1) and (counts.decisions, counts.guessed) == (0, 1)


def test_a_predicate_s_shares_are_of_false_and_true():
    text = """  %x = f32[8,16]{1,0} parameter(0)
  %k = pred[] constant(true)
  ROOT %c = f32[8,16]{1,0} conditional(%k, %x, %x), true_computation=%twice, false_computation=%none, metadata={op_name="if"}"""
    assert account(text, BRANCHES).counts(Habits(branches={"if": (0.75, 0.25)})).kernels == pytest.approx(0.5)


def test_collectives_are_counted():
    text = """  %x = f32[8,16]{1,0} parameter(0)
  ROOT %r = f32[8,16]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add"""
    assert (account(text).counts().collectives, account(text).counts().kernels) == (1, 1)
    beside = account(text.replace("all-reduce(", "all-reduce-start(")).counts()  # beside the kernels
    assert (beside.collectives, beside.kernels, beside.bytes) == (1, 0, 2 * MATRIX)
    assert account(text.replace("all-reduce", "abs")).counts().collectives == 0


# Real inputs that a 3x3 window with a border of zeros meets along 5 positions: 2 + 3 + 3 + 3 + 2.
ALONG_5 = 13


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}", 2 * 8 * 8 * 16),
        (
            '(f32[8,8]{1,0}, s8[64]{0}) custom-call(%x, %x), custom_call_target="__cublas$gemm", backend_config='
            '{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 8 * 8 * 16,
        ),
        (
            "f32[2,5,5,4]{3,2,1,0} convolution(%i, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            2 * 2 * ALONG_5**2 * 3 * 4,
        ),
        (  # a gradient of inputs: the result is what the forward convolution read
            '(f32[2,5,5,3]{3,2,1,0}, u8[0]{0}) custom-call(%o, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, '
            'custom_call_target="__cudnn$convBackwardInput"',
            2 * 2 * ALONG_5**2 * 3 * 4,
        ),
        (  # a gradient of weights
            '(f32[3,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%i, %o), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, '
            'custom_call_target="__cudnn$convBackwardFilter"',
            2 * 2 * ALONG_5**2 * 3 * 4,
        ),
        (  # a TPU's batched matrix product: of 2 x 2 pairs of batches those on the diagonal
            "f32[2,8,8]{2,1,0} convolution(%l, %r), window={size=2 lhs_dilate=2}, dim_labels=0bf_0io->0bf",
            2 * 2 * 8 * 16 * 8,
        ),
        (  # the same as a sum over 5 x 4 positions and 3 samples; windows go by the number of their axis
            "f32[2,6,7,1,1]{4,3,2,1,0} convolution(%a, %c), window={size=5x2x4 lhs_dilate=1x2x1}, dim_labels=1f02b_1i02o->1bf02",
            2 * 2 * (5 * 4 * 3) * 6 * 7,
        ),
        (  # three groups of one feature each
            "f32[2,5,5,6]{3,2,1,0} convolution(%i, %g), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, "
            "feature_group_count=3",
            2 * 2 * ALONG_5**2 * 1 * 6,
        ),
        ("f32[8,16]{1,0} negate(%x)", 0),
        ("f32[] dot(%x, %x), lhs_contracting_dims={0,1}, rhs_contracting_dims={0,1}", 2 * 8 * 16),
        ("f32[2,8,8]{2,1,0} dot(%l, %r), lhs_batch_dims={0}, lhs_contracting_dims={2}", 2 * 2 * 8 * 8 * 16),
        ("f32[8,16,8,16]{3,2,1,0} dot(%x, %x)", 2 * 8 * 16 * 8 * 16),  # contracts nothing
        (
            'f32[2,8,8]{2,1,0} custom-call(%l, %r), custom_call_target="__cublas$lt$matmul", lhs_contracting_dims={2}',
            2 * 2 * 8 * 8 * 16,
        ),
        ('f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="TopK", lhs_contracting_dims={1}', 0),
        (
            '(f32[2,5,5,4]{3,2,1,0}, u8[0]{0}) custom-call(%i, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, '
            'custom_call_target="__cudnn$convForward"',
            2 * 2 * ALONG_5**2 * 3 * 4,
        ),
        (  # two groups of a sample each, for two of the four features
            "f32[1,5,5,4]{3,2,1,0} convolution(%i, %w), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, "
            "batch_group_count=2",
            2 * 1 * ALONG_5**2 * 3 * 4,
        ),
        (  # along 5 positions, one of padding before them: 2 + 3
            "f32[2,2,2,4]{3,2,1,0} convolution(%i, %w), window={size=3x3 stride=2x2 pad=1_0x1_0}, dim_labels=b01f_01io->b01f",
            2 * 2 * 5**2 * 3 * 4,
        ),
        ("f32[2,3,3,4]{3,2,1,0} convolution(%i, %w), window={size=3x3}, dim_labels=b01f_01io->b01f", 2 * 2 * 9**2 * 3 * 4),
        ("f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%outer", 2 * 8 * 8 * 16),  # of a product in a fusion in a fusion
    ],
)  # fmt: skip
def test_flops_are_those_of_products(line, flops):
    text = f"""  %x = f32[8,16]{{1,0}} parameter(0)
  %i = f32[2,5,5,3]{{3,2,1,0}} parameter(1)
  %w = f32[3,3,3,4]{{3,2,1,0}} parameter(2)
  %o = f32[2,5,5,4]{{3,2,1,0}} parameter(3)
  %l = f32[2,8,16]{{2,1,0}} parameter(4)
  %r = f32[2,16,8]{{2,1,0}} parameter(5)
  %a = f32[2,3,5,4,6]{{4,3,2,1,0}} parameter(6)
  %c = f32[2,3,5,4,7]{{4,3,2,1,0}} parameter(7)
  %g = f32[3,3,1,6]{{3,2,1,0}} parameter(8)
  ROOT %y = {line}"""
    fused = """%inner (a: f32[8,16]) -> f32[8,8] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
%outer (a: f32[8,16]) -> f32[8,8] {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %n = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%inner
}
"""
    assert account(text, fused).counts().flops == flops


@pytest.mark.parametrize(
    ("stride", "dilation", "padding"), [(1, 1, "SAME"), (2, 1, "SAME"), (1, 2, "VALID"), (3, 1, "VALID")]
)
def test_a_compiled_convolution_multiplies_what_its_windows_meet(stride, dilation, padding):
    x, w = jnp.ones((2, 7, 9, 3)), jnp.ones((3, 2, 3, 4))

    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (stride, stride), padding, rhs_dilation=(dilation,) * 2, dimension_numbers=numbers
        )

    text = jax.jit(convolve).lower(x, w).compile().as_text()
    assert Account(text).counts().flops == 2 * float(np.sum(convolve(x, w)))  # of ones, the sum counts the products


def test_a_compiled_scan_does_its_body_once_a_turn():
    w = jnp.ones((16, 16))

    def scan(x):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=11)[0]

    found = Account(jax.jit(scan).lower(jnp.ones((8, 16))).compile().as_text())
    assert found.turn(11).flops == 2 * 8 * 16 * 16
    assert found.counts().flops == 11 * 2 * 8 * 16 * 16


def test_without_loops_bytes_agree_with_xla_s_own_account():
    compiled = jax.jit(lambda x, w: jnp.sum(jnp.tanh(x @ w), 0)).lower(jnp.ones((64, 32)), jnp.ones((32, 48))).compile()
    assert Account(compiled.as_text()).counts().bytes == pytest.approx(
        compiled.cost_analysis()["bytes accessed"], rel=0.05
    )
