"""The counter of compiled GPU programs against counts by hand, its tables and its limits; CUDA is not needed."""

import json

import pytest
from conftest import ROOT

from benchmarks.gpu_programs import __main__ as command
from benchmarks.gpu_programs import counting, examples, hlo, programs, report
from benchmarks.gpu_programs.cards import CARDS
from benchmarks.gpu_programs.counting import Cost, Count

# A loop of an unknown number of turns, in which another takes three: 4 KB are read and written in each of those, and
# 4 KB are reversed by the larger branch of a conditional.
NESTED = """HloModule nested

%inner_body (a: (s32[], f32[1024])) -> (s32[], f32[1024]) {
  %a = (s32[], f32[1024]{0}) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %x = f32[1024]{0} get-tuple-element(%a), index=1
  %y = f32[1024]{0} negate(%x)
  ROOT %t = (s32[], f32[1024]{0}) tuple(%i, %y)
}

%inner_condition (b: (s32[], f32[1024])) -> pred[] {
  %b = (s32[], f32[1024]{0}) parameter(0)
  ROOT %p = pred[] constant(true)
}

%small (c: f32[1024]) -> f32[1024] {
  ROOT %c = f32[1024]{0} parameter(0)
}

%large (d: f32[1024]) -> f32[1024] {
  %d = f32[1024]{0} parameter(0)
  ROOT %r = f32[1024]{0} reverse(%d), dimensions={0}
}

%outer_body (e: (s32[], f32[1024], pred[])) -> (s32[], f32[1024], pred[]) {
  %e = (s32[], f32[1024]{0}, /*index=2*/pred[]) parameter(0)
  %j = s32[] get-tuple-element(%e), index=0
  %z = f32[1024]{0} get-tuple-element(%e), index=1
  %q = pred[] get-tuple-element(%e), index=2
  %s = (s32[], f32[1024]{0}) tuple(%j, %z)
  %w = (s32[], f32[1024]{0}) while(%s), condition=%inner_condition, body=%inner_body, THREE_TURNS
  %v = f32[1024]{0} get-tuple-element(%w), index=1
  %u = f32[1024]{0} conditional(%q, %v, %v), branch_computations={%small, %large}
  ROOT %o = (s32[], f32[1024]{0}, pred[]) tuple(%j, %u, %q)
}

%outer_condition (f: (s32[], f32[1024], pred[])) -> pred[] {
  %f = (s32[], f32[1024]{0}, pred[]) parameter(0)
  ROOT %k = pred[] get-tuple-element(%f), index=2
}

ENTRY %main (g: s32[], h: f32[1024], l: pred[]) -> f32[1024] {
  %g = s32[] parameter(0)
  %h = f32[1024]{0} parameter(1)
  %l = pred[] parameter(2)
  %n = f32[1024]{0} exponential(%h)
  %m = (s32[], f32[1024]{0}, pred[]) tuple(%g, %n, %l)
  %loop = (s32[], f32[1024]{0}, pred[]) while(%m), condition=%outer_condition, body=%outer_body
  ROOT %result = f32[1024]{0} get-tuple-element(%loop), index=1
}
""".replace("THREE_TURNS", 'backend_config={"known_trip_count":{"n":"3"}}')


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_the_counter_agrees_with_hands(name):
    text = (ROOT / "tests" / "gpu_programs" / f"{name.replace(' ', '_')}.hlo").read_text()
    assert not examples.differences(name, counting.count_loop(hlo.parse(text)))


def test_an_example_that_is_counted_otherwise_is_told():
    count = Count()
    count.by_class[counting.LAYOUT] = Cost(kernels=2, bytes=5)
    told = "transpose, layout: Expected kernels, bytes, operations (1, 4194304, 0), got (2, 5, 0)."
    assert examples.differences("transpose", count) == [told]


def test_loops_count_by_their_turns_and_branches_by_the_larger():
    module = hlo.parse(NESTED)
    assert counting.count_loop(module).total == Cost(4, 4 * 8192, 3 * 1024, 0)
    assert counting.count_all(module).total == Cost(5, 5 * 8192, 4 * 1024, 0)


def test_a_call_of_our_own_convolution_counts_as_one():
    """Of 1,024 pixels with 16 channels, read with a shortcut and written: nine taps, two operations a multiply-add."""
    call = """ENTRY %main (x: bf16[1024,16], s: bf16[1024,16], k: bf16[9,16,16]) -> (bf16[1024,16], f32[4,2,16]) {
  %x = bf16[1024,16]{1,0} parameter(0)
  %s = bf16[1024,16]{1,0} parameter(1)
  %k = bf16[9,16,16]{2,1,0} parameter(2)
  ROOT %c = (bf16[1024,16]{1,0}, f32[4,2,16]{2,1,0}) custom-call(%x, %s, %k), CALLED
}"""
    called = 'custom_call_target="__gpu$xla.gpu.triton", backend_config={name = "NAME"}'
    ours, other = (
        counting.count_all(hlo.parse(call.replace("CALLED", called.replace("NAME", name)))).by_class
        for name in ("convolution_gpu", "gelu")
    )
    moved = 3 * 1024 * 16 * 2 + 9 * 16 * 16 * 2 + 4 * 2 * 16 * 4
    assert ours[counting.CONVOLUTIONS] == Cost(1, moved, 2 * 9 * 16 * 1024 * 16, 0)
    assert other[counting.PASSES] == Cost(1, moved, 0, 0)


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="Expected the text of a compiled program"):
        hlo.parse("HloModule empty")


def row(card="h100", command="certify", **changes):
    count = Count()
    count.by_class[counting.CONVOLUTIONS] = Cost(kernels=2, bytes=2_000_000, flops=8_000_000)
    count.by_class[counting.NOISE] = Cost(kernels=1, bytes=1_000_000, flops=100, integers=4_000)
    values = {"devices": 1, "units": 2, "count": count, "scratch": 10**9, "arguments": 10**6} | changes
    return report.row(CARDS[card], command, "ResNet-20", "bfloat16", "normal", **values)


def test_a_floor_is_what_bytes_and_operations_take_at_the_cards_best():
    one = row()
    assert one["megabytes"] == 1.5
    assert one["bound"] == "memory"
    assert one["floor"] == pytest.approx(100_000 * 1.5e6 / 3.35232e12)
    assert one["floors"]["products"] == pytest.approx(100_000 * 4e6 / 989.4e12)
    assert one["floors"]["arithmetic"] == pytest.approx(100_000 * (50 / 33.45e12 + 2_000 / (64 * 132 * 1.98e9)))
    assert row(devices=8)["floor"] == pytest.approx(one["floor"] / 8)
    assert row(command="train")["floor"] == pytest.approx(one["floor"] / 2)


def test_rules_and_limits_are_told_where_they_are_broken():
    card = CARDS["h100"]
    assert report.broken(card, [row() | {"megabytes": 0.9}]) == []
    assert report.broken(card, [row()]) == [
        "certify, ResNet-20, bfloat16 on 1: Expected at most 1.0 megabytes, got 1.5."
    ]
    moved = row() | {"megabytes": 0.9, "moves": ["copy.1 of 100 bytes"]}
    moved["classes"][counting.LAYOUT]["kernels"] = 1
    assert "at most 0 layout, got 1 (copy.1 of 100 bytes)" in report.broken(card, [moved])[0]
    large = row() | {"megabytes": 0.9, "scratch": 48 * 10**9}
    assert "Expected at most 47.77 GB of memory, got 48.00." in report.broken(card, [large])[0]
    talking, sorting = (row(command=command) | {"megabytes": 0.9} for command in ("certify", "train"))
    talking["classes"][counting.COLLECTIVES]["kernels"] = 1
    sorting["classes"][counting.COLLECTIVES]["kernels"] = 1
    sorting["classes"][counting.SORTS]["kernels"] = 1
    assert "Expected no collective, got 1." in report.broken(card, [talking])[0]
    assert [line.split(": ")[1] for line in report.broken(card, [sorting])] == ["Expected no sort, got 1."]


def test_limits_and_the_short_run_are_of_programs_that_there_are():
    names = {program.name for program in programs.every()}
    assert command._MAIN.keys() == CARDS.keys()
    assert {program for some in command._MAIN.values() for program, _ in some} <= names
    limits = json.loads(report.LIMITS.read_text())
    assert limits.keys() <= CARDS.keys()
    assert all(one.keys() <= names for one in limits.values())


def test_every_network_law_and_kind_of_work_is_among_the_programs(monkeypatch):
    monkeypatch.setattr(programs, "missing", list)
    every = [(one.command, one.network, one.dtype, one.law) for one in programs.every()]
    assert len(set(every)) == len(every)
    certified = {network for work, network, *_ in every if work == "certify"}
    assert certified == {
        "ResNet-20", "ResNet-110", "ResNet-50", "ViT-B/16", "full U-Net + ResNet-110", "small U-Net + ResNet-20",
        "from_torch ResNet-18", "from_torch ConvNeXt-T",
        "full U-Net + ResNet-110 (fused attention)", "ViT-B/16 (fused attention)",
    }  # fmt: skip
    laws = {"normal", "half_normal_length", "laplace_direction", "box", "laplace", "splitting"}
    for network in ("ResNet-20", "ResNet-110", "ResNet-50", "ViT-B/16"):
        for law in laws:
            assert {("certify", network, dtype, law) for dtype in ("float32", "bfloat16")} <= set(every)
    assert {law for work, _, _, law in every if work == "audit"} == laws
    trained = {network for work, network, *_ in every if work == "train"}
    assert {"ResNet-20", "ResNet-110", "small U-Net", "full U-Net"} <= trained
    monkeypatch.setattr(programs, "missing", lambda: ["torch"])
    assert len(every) - len(programs.every()) == 2


def test_a_table_keeps_the_rows_that_are_not_counted_anew(tmp_path):
    names = ["certify, ResNet-20, bfloat16", "train, ResNet-20, bfloat16"]
    table = command._Table(CARDS["h100"], names, tmp_path)
    table.add(row(command="train"))
    table.add(row(devices=8))
    again = command._Table(CARDS["h100"], names, tmp_path)
    again.add(row(scratch=2 * 10**9))
    again.add(row(command="train", scratch=3 * 10**9))
    said = json.loads((tmp_path / "gpu_programs_h100.json").read_text())
    assert said == again.rows
    assert [(one["program"], one["devices"], one["scratch"] / 1e9) for one in said] == [
        (names[0], 1, 2), (names[0], 8, 1), (names[1], 1, 3),
    ]  # fmt: skip
    assert (tmp_path / "gpu_programs_h100.md").read_text().count("\n| train, ") == 1
    assert not command._Table(CARDS["h100"], names[:0], tmp_path).rows  # a program that is no more


def test_a_page_says_that_nothing_was_measured():
    page = report.page(CARDS["a100"], [row("a100")], "a compiler")
    assert "**not measured: no card ran this.**" in page
    assert "| certify, ResNet-20, bfloat16 | 1 | 2 | 3 | 1.500 | 1.000 | 0.000 | 0.000 | 0.500 | 0.000 |" in page
    assert page.endswith("| 4.0 | 4.0 | 0.0 | 0.0 | 0.00 | 0 | 1.00 | 2% | 0.0736 | memory |\n")
