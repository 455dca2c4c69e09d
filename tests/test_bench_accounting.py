"""The account of a compiled program equals what one counts by hand in its text, and what small programs do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpevo import rules
from bpevo.bench import hlo, sample, thunks
from bpevo.bench.accounting import Account, Habits, Parts
from bpevo.rules import InterpretedRule

MATRIX = 4 * 8 * 16  # bytes of f32[8,16]


def account(body: str, computations: str = "", **kwargs) -> Account:
    return Account(f"HloModule m\n\n{computations}\nENTRY %main (x: f32[8,16]) -> f32[8,16] {{\n{body}\n}}\n", **kwargs)


@pytest.mark.parametrize(
    ("type_", "bytes_", "fast"),
    [
        ("f32[8,16]{1,0}", 512, False),
        ("bf16[3]{0}", 6, False),
        ("pred[]", 1, False),
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
        Account("HloModule m")


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
    for unknown in (Habits(), Habits(branches={"load": (0.5, 0.5)})):  # no such scope; another number of branches
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
    assert account(text).counts().collectives == 1


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
    assert account(text).counts().flops == flops


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


def program(text: str) -> rules.Program:
    return rules.assemble(rules.parse(text).to_equation(3))


def test_habits_are_what_the_programs_of_a_group_do():
    # 0 load g, norm; 1 load g, affine, add            0 load W, cube; 1 load b_next, @; 2 load dh, mul
    found = sample.habits([program("unit_fro(g) + (0.5*g)"), program("(cube(W) @ b_next.T).T * dh")])
    known = rules.program.codes()
    assert found.turns == {"instructions": 2.5, "functions": 2 / 5, "feedback": 0}
    loads = dict(zip(known.loads, found.branches["load"], strict=True))
    assert {k: v for k, v in loads.items() if v} == {"g": 0.4, "W": 0.2, "b_next": 0.2, "dh": 0.2}
    combines = dict(zip(known.combines, found.branches["combine"], strict=True))
    assert {k: v for k, v in combines.items() if v} == {"": 0.4, "@": 0.2, "add": 0.2, "mul": 0.2}
    functions = dict(zip(known.functions, found.branches["function"], strict=True))
    assert {k: v for k, v in functions.items() if v} == {"norm": 0.5, "cube": 0.5}
    assert found.branches["compute_gh"] == (0.5, 0.5) and found.branches["compute_fah"] == (1, 0)
    assert found.branches["reduce"][0] == found.branches["divide"][0] == 1  # a sum over all entries
    assert found.branches["mirror"] == (0, 1) and sum(found.branches["moments"]) == 0
    assert sample.groups([rules.parse("g").to_equation(3)] * 7, 3)[1:] and len(sample.groups([], 3)) == 0


def test_every_decision_of_the_interpreter_is_known_by_its_scope(units):
    """What one run decides, counted by hand from the listing of the program."""
    steps = units["conv_same"]
    rule = InterpretedRule(program("unit_fro(g) + (0.5*g)"))  # 0 load g, norm; 1 load g, affine, add
    unit, state = steps.unit(0), rule.init(steps.shapes)

    def signal(program, values, state, key):
        return InterpretedRule(program).signal(rules.Unit(values, unit.forward, unit.backward, key), state)

    lowered = jax.jit(signal).lower(rule.program, unit.values, state, jax.random.key(0))
    counts = Account(lowered.compile().as_text()).counts(sample.habits([rule.program]))
    products, loads, functions, reductions, divisions, combines = 3, 2, 1, 1, 1, 2
    assert counts.branches == pytest.approx(products + loads + functions + reductions + divisions + combines)
    instructions, turns, feedback = 2 + 1, (1 + 1) + (0 + 1), 2 * (0 + 1)
    assert counts.turns == pytest.approx(instructions + turns + feedback)
    assert counts.guessed == 0 and counts.decisions == counts.branches + counts.turns


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
"""
METADATA = "".join(
    f'thunk_metadata {{\n  thunk_info {{\n    profile_annotation: "{name}"\n    thunk_id: {number}\n  }}\n  thunk_kind: "k"\n}}\n'
    for number, name in ((1, "while.1"), (2, "conditional.2"), (3, "while.3"), (5, "while.5"), (6, "conditional.6"))
)


def test_what_stands_outside_of_command_buffers_is_the_host_s(tmp_path):
    assert thunks.on_host(SEQUENCE, METADATA) == {"while.3", "conditional.6"}
    assert thunks.read(tmp_path) is None
    for name, text in (("thunk_sequence_after_thunk_passes", SEQUENCE), ("thunk_metadata", METADATA)):
        (tmp_path / f"module_0001.jit_many.{name}.txt").write_text(text)
    assert thunks.read(tmp_path) == {"while.3", "conditional.6"}
