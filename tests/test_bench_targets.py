"""Accelerators by name: their published figures, their compilers, and what those are told."""

import importlib.util
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from bpevo.bench import targets
from bpevo.runs import RunError

HERE = targets.Accelerator("here", "cpu", "cpu", 1e9, {"float32": 2e9}, "made up", "1")


def test_published_figures_are_those_of_their_sources():
    """Of the data sheets of H100 and H200 (SXM), without sparsity, and of cloud.google.com/tpu/docs."""
    found = {
        a.name: (a.kind, a.bandwidth, a.flops["float32"], a.flops["bfloat16"], a.topology)
        for a in targets.ACCELERATORS.values()
    }
    assert found == {
        "h100": ("gpu", 3.35e12, 494.5e12, 989e12, "1x1x1"),
        "h200": ("gpu", 4.8e12, 494.5e12, 989e12, "1x1x1"),
        "v5e": ("tpu", 819e9, 197e12, 197e12, "1x1"),
        "v5p": ("tpu", 2765e9, 459e12, 459e12, "2x2x1"),
        "v6e": ("tpu", 1640e9, 918e12, 918e12, "1x1"),
    }
    assert targets.ACCELERATORS["v5e"].source == "cloud.google.com/tpu/docs/v5e"
    assert targets.ACCELERATORS["h200"].source == "NVIDIA H200 data sheet, SXM, without sparsity"


def test_a_real_device_is_known_by_its_kind():
    known = {
        "v5e": "TPU v5 lite",
        "v5p": "TPU v5",
        "v6e": "TPU v6 lite",
        "h100": "NVIDIA H100 80GB HBM3",
        "h200": "NVIDIA H200",
    }
    assert {name: targets.of_kind(kind).name for name, kind in known.items()} == {name: name for name in known}
    assert targets.of_kind("NVIDIA H100 PCIe") is None  # has less bandwidth
    assert targets.of_kind("cpu") is None


def test_a_step_is_bound_by_the_larger_of_memory_and_arithmetic():
    assert HERE.bounds(3e9, 1e9, "float32") == (3.0, 0.5)
    h100 = targets.ACCELERATORS["h100"]
    assert h100.bounds(3.35e9, 989e9, "bfloat16") == pytest.approx((1e-3, 1e-3))


@pytest.mark.parametrize("name", ["v9", "", "h100:2x2", "tpu"])
def test_an_unknown_target_is_told_with_those_that_there_are(name):
    with pytest.raises(RunError, match="no target '.*'; there are h100, h200, v5e, v5p, v6e"):
        targets.described(name)


@pytest.mark.parametrize(("name", "extra"), [("v5e", "tpu"), ("v6e:2x2", "tpu"), ("h100", "cuda12")])
def test_a_missing_compiler_is_told_with_what_installs_it(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda plugin: None)
    with pytest.raises(RunError, match=rf"compiler for {name} is not installed: pip install '\.\[{extra}\]'"):
        targets.described(name)


def test_a_target_is_named_with_or_without_its_topology():
    v5e, whole = targets.named("v5e")
    assert (v5e.kind, whole) == ("tpu", v5e.topology) and targets.named("v5e:2x2") == (v5e, "2x2")
    assert targets.named("h100")[1] == "1x1x1"
    for wrong in ("h100:2x2", "v99", ""):
        with pytest.raises(RunError, match="there are .*v5e"):
            targets.named(wrong)


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that describes four devices; what it was asked for."""
    asked = []

    def describe(**given):
        asked.append(given)
        return SimpleNamespace(devices=["a", "b", "c", "d"])

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    monkeypatch.setattr(importlib.util, "find_spec", lambda plugin: plugin in ("libtpu", "jax_cuda13_plugin") or None)
    return asked


@pytest.mark.parametrize(
    ("name", "devices", "asked"),
    [
        ("v5e", 1, {"topology_name": "v5e:1x1", "platform": "tpu"}),
        ("v5p", 1, {"topology_name": "v5p:2x2x1", "platform": "tpu"}),
        ("v6e:2x2", 4, {"topology_name": "v6e:2x2", "platform": "tpu"}),
    ],
)
def test_a_tpu_s_compiler_describes_one_device_or_a_whole_topology(compiler, name, devices, asked):
    assert targets.described(name) == ["a", "b", "c", "d"][:devices]
    assert compiler == [asked]


@pytest.mark.parametrize(
    ("name", "bandwidth", "memory", "words"),
    [
        ("h100", "3350000000000", "84929347584", "NVIDIA H100 80GB HBM3"),
        ("h200", "4800000000000", "150754820096", "NVIDIA H200"),
    ],
)
def test_a_gpu_s_compiler_is_told_what_the_device_has(compiler, name, bandwidth, memory, words):
    assert targets.described(name) == ["a"]
    [asked] = compiler
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x1")
    lines = [line.strip() for line in asked["target_config"].splitlines()]
    assert {f"memory_bandwidth: {bandwidth}", f"device_memory_size: {memory}", "core_count: 132"} <= set(lines)
    assert f'device_description_str: "{words}"' in lines and "cuda_compute_capability { major: 9 }" in lines


@pytest.mark.parametrize(("text", "reason"), [("no such chip\nat line 3\nof 4", "no such chip"), ("", "ValueError")])
def test_what_a_compiler_does_not_know_is_told_by_its_first_line(compiler, monkeypatch, text, reason):
    def refuse(**given):
        raise ValueError(text)

    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    with pytest.raises(RunError, match=f"^the installed compiler does not know v5e: {reason}$"):
        targets.described("v5e")


def test_compilers_ask_nobody_and_the_environment_has_the_last_word(monkeypatch):
    updates, environment = [], {"TPU_ACCELERATOR_TYPE": "v6e-1"}
    monkeypatch.setattr(
        targets, "jax", SimpleNamespace(config=SimpleNamespace(update=lambda *given: updates.append(given)))
    )
    monkeypatch.setattr(targets, "os", SimpleNamespace(environ=environment))
    targets.quiet()
    assert updates == [("jax_platforms", "cpu")]
    assert environment == {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
        "TPU_ACCELERATOR_TYPE": "v6e-1", "TPU_WORKER_HOSTNAMES": "localhost",
    }  # fmt: skip


@pytest.mark.parametrize(("platform", "cores"), [("gpu", 132), ("tpu", 1)])
def test_what_is_lowered_for_a_device_that_is_not_there_can_ask_which_it_is(platform, cores):
    with targets.as_if_on(SimpleNamespace(platform=platform, device_kind="NVIDIA H100")):
        device = jax.sharding.get_abstract_mesh().abstract_device
        assert (device.device_kind, device.num_cores) == ("NVIDIA H100", cores)
    with targets.as_if_on(jax.devices("cpu")[0]):
        assert jax.sharding.get_abstract_mesh().abstract_device is None
