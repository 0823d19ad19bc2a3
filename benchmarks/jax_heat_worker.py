"""JAX's side of ``rnn_heat.py``: the package's cells, compiled as training and serving do."""

from __future__ import annotations

import functools
import math
import sys

from workers import MadeOnRequest, serve

INPUTS = 1


def maker():
    """Returns what makes the call of a setting, ``CELL/TASK/BATCH/TIME/WIDTH``."""
    from jaxeff.train import runtime

    most = int(sys.argv[1]) if sys.argv[1:] else runtime.cpu_cores()
    runtime.keep_freed_memory()
    runtime.prepare(batch_size=runtime.cpu_cores())
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxeff import ode
    from jaxeff.train import DeviceMap

    def last_state(cell, params, xs):
        return ode.unroll(cell, params, jnp.swapaxes(xs, 0, 1), return_sequence=False)[1]

    def make(name: str):
        kind, task, *sizes = name.split("/")
        batch, time, width = map(int, sizes)
        cell = ode.CELLS[kind.lower()](width)
        params = cell.init(jax.random.key(0), INPUTS)
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(batch, time, INPUTS)), "f")
        if task == "inference":  # one program, which takes all cores itself
            forward = jax.jit(functools.partial(last_state, cell))
            return lambda: jax.block_until_ready(forward(params, xs))
        count = min(most, math.gcd(batch, len(jax.devices())))
        devices = DeviceMap(devices=jax.devices()[:count])
        params, xs = devices.replicate(params), devices.shard(xs)

        def gradient(params, xs, axis_name):
            def loss(params):
                return jnp.mean(jnp.square(last_state(cell, params, xs)))

            return jax.lax.pmean(jax.value_and_grad(loss)(params), axis_name)

        program = devices.map(gradient)
        return lambda: jax.block_until_ready(program(params, xs))

    return make


if __name__ == "__main__":
    serve(MadeOnRequest(maker()))
