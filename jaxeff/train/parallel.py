"""Maps one per-device step over all devices, by ``jit(shard_map)`` or by ``pmap``.

Both map the same function. ``shard_map`` is the default because its dispatch costs a quarter of
``pmap``'s; the automatic partitioning of ``jit`` is not offered because it puts an all-reduce into
every time step of a differentiated recurrence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxeff.errors import ConfigError
from jaxeff.ops import platform
from jaxeff.ops.platforms import PLATFORMS, current_platform
from jaxeff.train.values import AXIS

METHODS = ("shard_map", "pmap")


class DeviceMap:
    """A mesh of devices along one data axis, and how steps are mapped over it.

    Args:
      how: "shard_map" or "pmap".
      devices: the devices to use; all devices of all processes if None.
      memory_bytes: of each device; None asks the first of them.

    Raises:
      ConfigError: unknown method.
    """

    def __init__(
        self,
        how: str = "shard_map",
        devices: list[Any] | None = None,
        memory_bytes: int | None = None,
    ):
        if how not in METHODS:
            raise ConfigError(f"config.parallel must be one of {', '.join(METHODS)}, not {how!r}")
        self.how = how
        self.devices = list(devices or jax.devices())
        self.memory_bytes = memory_bytes
        self.mesh = Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        # On CPUs, programs with collectives that are dispatched without waiting for each other
        # can starve each other of threads and hang.
        self.must_wait = self.devices[0].platform == "cpu" and len(self.devices) > 1

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def platform(self) -> str:
        """What steps are traced for: a name that `jaxeff.ops.platform` takes."""
        kind = self.devices[0].platform
        return kind if kind in PLATFORMS else "reference"

    def check_batch(self, batch_size: int, field: str) -> None:
        """Raises `ConfigError` if a global batch does not split evenly over the devices."""
        if batch_size < 1 or batch_size % self.size:
            raise ConfigError(
                f"config.{field} must be a positive multiple of the {self.size} devices, "
                f"not {batch_size}"
            )

    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays on every device."""
        return jax.device_put(tree, self.replicated)

    def shard(self, batch: Any) -> Any:
        """Splits this process's part of a batch ``[batch, ...]`` over its devices."""
        if self.how == "pmap":
            local = sum(d.process_index == jax.process_index() for d in self.devices)
            batch = jax.tree.map(lambda a: a.reshape(local, -1, *a.shape[1:]), batch)
            if jax.process_count() == 1:
                return batch
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(self.split, a), batch)

    def shapes(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Returns the shapes of a step's arguments, for lowering it where no device can hold them.

        Args:
          state: shapes of what every device gets whole.
          batch: of all devices, arrays or shapes ``[batch, ...]``.
        """
        if self.how == "pmap":
            state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
            batch = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(
                    (self.size, a.shape[0] // self.size, *a.shape[1:]), a.dtype
                ),
                batch,
            )
            return state, batch
        return state, jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.split), batch
        )

    def map(
        self, step: Callable[..., Any], replicated: int = 1, *, donate: bool = False
    ) -> Callable[..., Any]:
        """Maps ``step(*replicated, batch, axis_name=...)`` over the devices.

        Args:
          step: the per-device function; its results must be equal on all devices.
          replicated: number of arguments before the batch, which every device gets whole.
          donate: reuse the memory of the first argument for the results ("shard_map" only).

        Returns:
          a compiled function of the same arguments, the batch as `shard` returns it.
        """

        def per_device(*args: Any) -> Any:
            # Whoever asks for plain JAX, to count it or to differentiate it again, has it.
            is_plain = current_platform() == "reference"
            with platform("reference" if is_plain else self.platform):
                return step(*args, axis_name=AXIS)

        if self.how == "pmap":
            axes = (*(None for _ in range(replicated)), 0)
            several = jax.process_count() > 1
            devices = None if several else self.devices
            mapped = jax.pmap(
                per_device, axis_name=AXIS, in_axes=axes, out_axes=None, devices=devices
            )
            return _MultiProcessPmap(mapped) if several else mapped
        specs = (*(PartitionSpec() for _ in range(replicated)), PartitionSpec(AXIS))
        mapped = jax.shard_map(
            per_device, mesh=self.mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=(0,) if donate else ())


class _MultiProcessPmap:
    """``pmap`` over several processes, on global arrays like the other maps.

    By itself ``pmap`` takes and returns arrays of one process when called, and arrays of all
    processes when compiled ahead of time; only those can be saved and restored.

    Args:
      mapped: what ``jax.pmap`` returns; its last argument is the batch.
    """

    def __init__(self, mapped: Any):
        self._mapped = mapped
        self._compiled: dict[Any, Any] = {}

    def lower(self, *args: Any) -> Any:
        """Lowers the function for such arguments, the batch as `DeviceMap.shard` returns it."""
        *replicated, batch = args
        # Tracing needs the local part.
        return self._mapped.lower(*replicated, jax.tree.map(_own_part, batch))

    def __call__(self, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        kind = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if kind not in self._compiled:
            self._compiled[kind] = self.lower(*args).compile()
        return self._compiled[kind](*args)


def _own_part(array: jax.Array) -> np.ndarray:
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
