"""What a command tells jax before it begins, whatever the environment says, and what it says where there is no device."""

import pathlib
import types

import pytest

from bpevo.command import jax_setup
from bpevo.runs import RunError

# jax's own defaults: a run has the numbers of a library's user who sets nothing.
DEFAULTS = {
    "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True, "jax_random_seed_offset": 0,
    "jax_enable_x64": False, "jax_debug_nans": False, "jax_debug_infs": False, "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow", "jax_transfer_guard": "allow",
    "jax_debug_key_reuse": False,
}  # fmt: skip
READ = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "XDG_CACHE_HOME", "HOME")


@pytest.fixture
def configured(monkeypatch):
    """What jax is told in an environment."""

    def configure(*arguments: bool, failure: Exception | None = None, **environment: str) -> dict:
        def devices():
            if failure:
                raise failure

        for name in READ:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made: dict = {}
        config = types.SimpleNamespace(update=made.__setitem__)
        monkeypatch.setattr(jax_setup, "jax", types.SimpleNamespace(config=config, local_devices=devices))
        monkeypatch.setattr(jax_setup, "usable_cpus", lambda: 3)
        jax_setup.configure_jax(*arguments)
        return made

    return configure


def test_jax_keeps_its_defaults_all_cores_and_every_program(configured):
    kept = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": 0}
    whole = DEFAULTS | kept | {"jax_num_cpu_devices": 3, "jax_compilation_cache_dir": "/x/bpevo/jax"}
    assert configured(XDG_CACHE_HOME="/x") == whole
    assert configured(True, XDG_CACHE_HOME="/x") == whole | {"jax_platforms": "cpu"}
    assert configured(XDG_CACHE_HOME="/x", XLA_FLAGS="--xla_cpu_enable_fast_math=false") == whole
    del whole["jax_num_cpu_devices"]
    assert configured(XDG_CACHE_HOME="/x", JAX_NUM_CPU_DEVICES="2") == whole
    assert configured(XDG_CACHE_HOME="/x", XLA_FLAGS="--xla_force_host_platform_device_count=4") == whole
    del whole["jax_compilation_cache_dir"]
    assert configured(XDG_CACHE_HOME="/x", JAX_NUM_CPU_DEVICES="2", JAX_COMPILATION_CACHE_DIR="/y") == whole


def test_programs_are_kept_below_the_home_directory_unless_there_is_none(configured, monkeypatch):
    configured(HOME="/home/of")
    assert jax_setup.cache_folder() == pathlib.Path("/home/of/.cache/bpevo/jax")
    monkeypatch.setattr(jax_setup.os.path, "expanduser", lambda path: path)  # no home is known
    assert jax_setup.cache_folder() is None and "jax_compilation_cache_dir" not in configured()


@pytest.mark.parametrize(
    "failure, platforms, said",
    [
        (RuntimeError("no backend\nat all"), "cuda", "jax finds no device for JAX_PLATFORMS=cuda: no backend; unset"),
        (AssertionError(), "tpu", "jax finds no device for JAX_PLATFORMS=tpu; unset"),
        (RuntimeError("no backend"), "", "jax finds no device: no backend; unset"),
    ],
)
def test_without_a_device_one_line_says_what_was_asked_for_and_what_to_do(configured, failure, platforms, said):
    with pytest.raises(RunError) as caught:
        configured(failure=failure, JAX_PLATFORMS=platforms)
    does = "JAX_PLATFORMS, or install what that device needs: pip install '.[cuda12]', '.[cuda13]' or '.[tpu]'"
    assert str(caught.value) == f"{said} {does}"


@pytest.mark.parametrize(
    "name, heeded, not_heeded",
    [
        ("JAX_ENABLE_X64", ("0", "false", " False ", "off", ""), ("1", "True", "t", "yes", "y", "ON")),
        ("JAX_THREEFRY_PARTITIONABLE", ("1", "true", "yes"), ("0", "false", "no")),
        ("JAX_RANDOM_SEED_OFFSET", ("0", ""), ("5", "-1")),
        ("JAX_DEFAULT_PRNG_IMPL", ("threefry2x32", "THREEFRY2X32"), ("rbg",)),
    ],
)
def test_what_the_environment_says_otherwise_is_named_with_what_holds(monkeypatch, name, heeded, not_heeded):
    for other in DEFAULTS:
        monkeypatch.delenv(other.upper(), raising=False)
    for text in heeded:
        monkeypatch.setenv(name, text)
        assert jax_setup.not_heeded() == {}
    for text in not_heeded:
        monkeypatch.setenv(name, text)
        assert jax_setup.not_heeded() == {name: str(DEFAULTS[name.lower()])}
