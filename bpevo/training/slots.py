"""The seam between one candidate's program and K slots over all devices."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bpevo.training.graphs import graphs

AXIS = "slots"


CPU_SLOTS, MAX_SLOTS = 4, 16  # per device: the default on a CPU, the largest default elsewhere
SHARE = 0.6  # of a device's free memory that the default may fill: XLA's temporaries come on top


def fitting(needed: tuple[int, int], devices: Sequence[jax.Device]) -> int | None:
    """Slots that fit in the devices' free memory by estimate, from (state, activations) in bytes; None where a device does not
    tell its memory, as a CPU. In use may be the slots of another network."""
    memory = devices[0].memory_stats() or {}
    if not memory.get("bytes_limit"):
        return None
    limit = memory["bytes_limit"] - memory.get("bytes_in_use", 0)
    alone = default_lowering(devices) == "map"  # one slot's activations at a time
    state, activations = needed
    share = int((SHARE * limit - activations) / state if alone else SHARE * limit / (state + activations))
    return max(1, share) * len(devices)


def most_slots(devices: Sequence[jax.Device]) -> int:
    """The largest default."""
    return (CPU_SLOTS if devices[0].platform == "cpu" else MAX_SLOTS) * len(devices)


def default_lowering(devices: Sequence[jax.Device]) -> str:
    return "map" if devices[0].platform == "cpu" else "vmap"


def compiler_options(devices: Sequence[jax.Device]) -> Mapping[str, int | str]:
    """On a CPU LLVM's level 1 instead of 3: it compiles in two thirds of the time and steps as fast."""
    return {"xla_backend_optimization_level": 1} if devices[0].platform == "cpu" else graphs(devices[0]).options


def slots(
    step: Callable,
    devices: Sequence[jax.Device],
    lowering: str | None = None,
    donate: bool = True,
    options: Mapping[str, int | str] | None = None,
) -> jax.stages.Wrapped:
    """`step(order, state, shared) -> (state, out)` for one candidate, run for K = slots, sharded over `devices`.

    Orders, states and outputs gain a leading axis [K], a multiple of the number of devices; `shared` is replicated;
    states are donated unless `donate` is False. "map" runs a device's slots one after the other, each with real
    branches; "vmap" batches them. `options` are XLA's; None: `compiler_options`.
    """
    lowering = lowering or default_lowering(devices)
    options = compiler_options(devices) if options is None else options

    def many(orders, states, shared):
        if lowering == "map":
            return _in_turn(step, orders, states, shared)
        return jax.vmap(step, (0, 0, None))(orders, states, shared)

    if len(devices) > 1:
        many = jax.shard_map(
            many,
            mesh=Mesh(np.array(devices), (AXIS,)),
            in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    return jax.jit(many, donate_argnums=1 if donate else (), compiler_options=dict(options))


def _in_turn(step: Callable, orders, states, shared):
    """As `lax.map`, but states change where they lie."""

    def one(states, xs):
        k, order = xs
        state, out = step(order, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, k, keepdims=False), states), shared)
        return jax.tree.map(lambda all_, x: lax.dynamic_update_index_in_dim(all_, x, k, 0), states, state), out

    count = len(jax.tree.leaves(states)[0])
    return lax.scan(one, states, (jnp.arange(count), orders))


def shardings(devices: Sequence[jax.Device]):
    """(of what has a slot axis, of what all share)."""
    if len(devices) == 1:
        single = jax.sharding.SingleDeviceSharding(devices[0])
        return single, single
    mesh = Mesh(np.array(devices), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
