"""JAX's side of ``rnn_speed.py``: the package as training uses it, or Flax's own wrapper."""

from __future__ import annotations

import math
import sys

from workers import serve


def jaxeff_variants(batch: int, time: int, inputs: int, features: int):
    """Forward and backward of the package's cells, mapped over the devices as training does."""
    from jaxeff.train import runtime

    runtime.keep_freed_memory()
    runtime.prepare(batch_size=batch)
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxeff import ode
    from jaxeff.models import SequenceModel
    from jaxeff.train import DeviceMap
    from jaxeff.train.algorithms import FPTT, Task
    from jaxeff.train.objectives import cross_entropy

    devices = DeviceMap()
    xs = devices.shard(np.random.default_rng(0).normal(size=(batch, time, inputs)).astype("f"))

    def variant(cell):
        params = devices.replicate(cell.init(jax.random.key(0), inputs))

        def gradient(params, xs, axis_name):
            def loss(params):
                _, last = ode.unroll(cell, params, jnp.swapaxes(xs, 0, 1), return_sequence=False)
                return jnp.mean(jnp.square(last))

            return jax.lax.pmean(jax.value_and_grad(loss)(params), axis_name)

        mapped = devices.map(gradient)
        return lambda: jax.block_until_ready(mapped(params, xs))

    def fptt(cell):
        """One batch of training, updates included, as the training loop makes it."""
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        task = Task("classification", 10, time, steps_per_epoch=469)
        algorithm = FPTT(
            SequenceModel(cell, 10), cross_entropy(), optimizer, task, auxiliary="uniform"
        )
        example = np.zeros((1, time, inputs), np.float32)
        state = devices.replicate(algorithm.init_state(jax.random.key(0), example))
        labels, weight = np.arange(batch) % 10, np.ones(batch, np.float32)
        batch_of = {"inputs": xs, **devices.shard({"labels": labels, "weight": weight})}
        step = devices.map(algorithm.update, donate=True)
        kept = [state]

        def call():
            kept[0], metrics = step(kept[0], batch_of)
            jax.block_until_ready((kept[0], metrics))

        return call

    def products(count):
        """The matrix products of a cell with that many blocks, and nothing else: the floor.

        Per step one with the state, one with the cotangent and one for the weights' gradient.
        """
        kernels = devices.replicate(
            list(jax.random.normal(jax.random.key(0), (count, features, features)) / features)
        )

        def run(kernels, xs, axis_name):
            start = jnp.zeros((xs.shape[0], features)) + xs[:, 0]

            def scan(step, state):
                return jax.lax.scan(lambda s, _: (step(s), s), state, length=time)

            last, states = scan(lambda s: sum(s @ k for k in kernels), start)
            _, pulled = scan(lambda d: sum(d @ k.T for k in kernels), last)
            # As the package does: blocks of 16 steps, the states transposed once for all kernels.
            block = math.gcd(time, 16) * xs.shape[0]
            left, right = (a.reshape(-1, block, features) for a in (states, pulled))

            def gradient(total, block):
                left, right = block
                left = jax.lax.optimization_barrier(left.T)
                # Scaled, so that equal products are not made only once.
                return [t + left @ (right * (1.0 + i)) for i, t in enumerate(total)], None

            total, _ = jax.lax.scan(gradient, [jnp.zeros_like(k) for k in kernels], (left, right))
            return jax.lax.pmean(total, axis_name)

        mapped = devices.map(run)
        return lambda: jax.block_until_ready(mapped(kernels, xs))

    cells = {
        "irnn": ode.IRNN(features),
        "irnn_k3": ode.IRNN(features, num_inner_steps=3),
        "tarnn": ode.TARNN(features),
        "tarnn_k2": ode.TARNN(features, num_inner_steps=2),
        "RNN": ode.Elman(features),
        "LSTM": ode.LSTM(features),
        "GRU": ode.GRU(features),
    }
    trained = {"fptt_lstm": ode.LSTM(features), "fptt_tarnn": ode.TARNN(features)}
    floors = {"products_of_tarnn": products(3), "products_of_LSTM": products(4)}
    return (
        {name: variant(cell) for name, cell in cells.items()}
        | {name: fptt(cell) for name, cell in trained.items()}
        | floors
    )


def flax_variants(batch: int, time: int, inputs: int, features: int):
    """Forward and backward of Flax's cells in Flax's wrapper, under plain jit."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    xs = jax.random.normal(jax.random.key(0), (batch, time, inputs))

    def variant(cell):
        model = nn.RNN(cell)
        params = model.init(jax.random.key(0), xs)
        gradient = jax.jit(
            jax.value_and_grad(lambda p: jnp.mean(jnp.square(model.apply(p, xs)[:, -1])))
        )
        return lambda: jax.block_until_ready(gradient(params))

    cells = {
        "RNN": nn.SimpleCell(features),
        "LSTM": nn.OptimizedLSTMCell(features),
        "GRU": nn.GRUCell(features),
    }
    return {name: variant(cell) for name, cell in cells.items()}


def main():
    which, *sizes = sys.argv[1:]
    make = {"jaxeff": jaxeff_variants, "flax": flax_variants}[which]
    serve(make(*map(int, sizes)))


if __name__ == "__main__":
    main()
