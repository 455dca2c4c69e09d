"""The seam between one candidate's program and K slots over all devices."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "slots"


def default_lowering(devices: Sequence[jax.Device]) -> str:
    return "map" if devices[0].platform == "cpu" else "vmap"


def slots(step: Callable, devices: Sequence[jax.Device], lowering: str | None = None, donate: bool = True) -> Callable:
    """`step(order, state, shared) -> (state, out)` for one candidate, run for K = slots, sharded over `devices`.

    Orders, states and outputs gain a leading axis [K], a multiple of the number of devices; `shared` is replicated;
    states are donated unless `donate` is False. "map" runs a device's slots one after the other, each with real
    branches; "vmap" batches them.
    """
    lowering = lowering or default_lowering(devices)

    def many(orders, states, shared):
        if lowering == "map":
            return lax.map(lambda xs: step(*xs, shared), (orders, states))
        return jax.vmap(step, (0, 0, None))(orders, states, shared)

    if len(devices) > 1:
        many = jax.shard_map(
            many,
            mesh=Mesh(np.array(devices), (AXIS,)),
            in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
    return jax.jit(many, donate_argnums=1 if donate else ())


def shardings(devices: Sequence[jax.Device]):
    """(of what has a slot axis, of what all share)."""
    if len(devices) == 1:
        single = jax.sharding.SingleDeviceSharding(devices[0])
        return single, single
    mesh = Mesh(np.array(devices), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
