"""What ``accelerator.py`` measures on a GPU or TPU, section by section."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recorded import config_of

from jaxeff import bench, ode
from jaxeff.ops import platform

Call = Callable[[], Any]


class Clock:
    """How much of the time is left; a section asks before each of its settings."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether none are."""
        return self.left <= 0


def device(quick: bool, clock: Clock) -> dict[str, Any]:
    """Kind and number of the devices, their memory, and the target config of a GPU."""
    from jaxlib import xla_client

    first = jax.devices()[0]
    described = {
        "kind": first.device_kind,
        "platform": first.platform,
        "count": jax.device_count(),
        "memory_bytes": (first.memory_stats() or {}).get("bytes_limit"),
    }
    if first.platform == "gpu":  # what programs are compiled for where there is no such GPU
        topology = xla_client.get_topology_for_devices(jax.devices())
        described["target_config"] = str(topology.target_config)
    return described


def timed(variants: dict[str, Call], quick: bool, clock: Clock) -> dict[str, Any]:
    """Returns the times of calls in turns; of one that fails, what it said."""
    ready, failed = {}, {}
    for name, call in variants.items():
        if clock.is_over:
            failed[name] = {"error": "no time was left"}
            continue
        began = time.perf_counter()
        try:
            jax.block_until_ready(call())
        except Exception as error:  # whatever a device's compiler raises
            failed[name] = {"error": explained(error)}
            continue
        ready[name] = (call, time.perf_counter() - began)
    calls = {name: call for name, (call, _) in ready.items()}
    times = bench.interleaved(calls, *((1, 1) if quick else (5, 3)), warmup=1) if calls else {}
    return failed | {
        name: {"ms": t.median_ms, "min_ms": t.min_ms, "first_call_s": ready[name][1]}
        for name, t in times.items()
    }


def explained(error: Exception) -> str:
    """Returns the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


# Recurrences.


def kernel_parity(quick: bool, clock: Clock) -> dict[str, Any]:
    """Values and gradients of every fused cell by the kernel against the scan, on this device."""
    driver = "interpreted" if jax.default_backend() == "cpu" else "kernel"
    names = ["gru"] if quick else [n for n in ode.CELLS if ode.CELLS[n](features=8).fused]
    compared: dict[str, Any] = {}
    for name in names:
        if clock.is_over:
            break
        try:
            compared[name] = _kernel_errors(name, driver, 8 if quick else 128)
        except Exception as error:
            compared[name] = {"error": explained(error)}
    return compared


def _kernel_errors(name: str, driver: str, width: int) -> dict[str, float]:
    cell = ode.CELLS[name](features=width)
    params = _initialised(cell, 4)
    xs = jax.random.normal(jax.random.key(1), (50, 2 * width, 4))

    def run(driver: str) -> Any:
        def loss(params: Any, xs: Any) -> Any:
            _, ys = ode.unroll(cell, params, xs, driver=driver)
            return jnp.mean(jnp.square(ys)), ys

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, xs)

    (_, ys), gradients = run("scan")
    (_, kernel_ys), kernel_gradients = run(driver)
    return {
        "values": _relative([kernel_ys], [ys]),
        "gradients": _relative(jax.tree.leaves(kernel_gradients), jax.tree.leaves(gradients)),
    }


def _relative(actual: list[Any], expected: list[Any]) -> float:
    """Returns the largest difference, array by array, relative to the array's largest entry."""
    pairs = zip(actual, expected, strict=True)
    arrays = [(np.asarray(a, float), np.asarray(b, float)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / (np.abs(b).max() + 1e-30)) for a, b in arrays)


def recurrent_speed(quick: bool, clock: Clock) -> dict[str, Any]:
    """Forward and backward of recurrent layers: the scan, the kernel, Flax, cuDNN and PyTorch."""
    batch, length, width, inputs = (8, 32, 16, 1) if quick else (128, 784, 128, 1)
    drivers = ["scan"] + ["kernel"] * (jax.default_backend() != "cpu")
    cells = {"irnn": ode.IRNN(width), "tarnn": ode.TARNN(width), "lstm": ode.LSTM(width)}
    variants: dict[str, Call] = {}
    for dtype in (jnp.float32,) if quick else (jnp.float32, jnp.bfloat16):
        xs = jax.random.normal(jax.random.key(1), (length, batch, inputs), dtype)
        for name, cell in cells.items():
            params = _initialised(cell, inputs, dtype)
            for driver in drivers:
                label = f"{name}, {driver}, {jnp.dtype(dtype).name}"
                variants[label] = _gradient(cell, driver, params, xs)
        variants[f"lstm, flax, {jnp.dtype(dtype).name}"] = _flax_lstm(width, xs)
    if jax.default_backend() == "gpu":
        variants["lstm, cuDNN, float32"] = _cudnn_lstm(batch, length, inputs, width)
        if importlib.util.find_spec("torch"):
            variants["lstm, PyTorch, float32"] = _torch_lstm(batch, length, inputs, width)
    sizes = {"batch": batch, "length": length, "width": width, "inputs": inputs}
    return sizes | {"ms": timed(variants, quick, clock)}


def _initialised(cell: ode.Cell, inputs: int, dtype: Any = jnp.float32) -> Any:
    """Returns first parameters, made by one program."""
    return jax.jit(lambda: cell.init(jax.random.key(0), inputs, dtype))()


def _gradient(cell: ode.Cell, driver: str, params: Any, xs: Any) -> Call:
    def loss(params: Any, xs: Any) -> Any:
        _, last = ode.unroll(cell, params, xs, driver=driver, return_sequence=False)
        return jnp.mean(jnp.square(last.astype(jnp.float32)))

    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: gradient(params, xs)


def _flax_lstm(width: int, xs: Any) -> Call:
    import flax.linen as nn

    model = nn.RNN(nn.OptimizedLSTMCell(width, dtype=xs.dtype), time_major=True)
    variables = jax.jit(model.init)(jax.random.key(0), xs)
    gradient = jax.jit(
        jax.value_and_grad(lambda v: jnp.mean(jnp.square(model.apply(v, xs)[-1].astype("f4"))))
    )
    return lambda: gradient(variables)


def _cudnn_lstm(batch: int, length: int, inputs: int, width: int) -> Call:
    from jax.experimental import rnn

    weights = rnn.init_lstm_weight(jax.random.key(0), inputs, width, 1, False)
    xs = jax.random.normal(jax.random.key(1), (batch, length, inputs))
    start, lengths = jnp.zeros((1, batch, width)), jnp.full(batch, length, jnp.int32)

    def loss(weights: Any) -> Any:
        ys, *_ = rnn.lstm(xs, start, start, weights, lengths, inputs, width, 1, 0.0, False)
        return jnp.mean(jnp.square(ys[:, -1]))

    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: gradient(weights)


def _torch_lstm(batch: int, length: int, inputs: int, width: int) -> Call:
    import torch

    layer = torch.nn.LSTM(inputs, width).cuda()
    xs = torch.randn(length, batch, inputs, device="cuda")

    def call() -> None:
        layer.zero_grad()
        layer(xs)[0][-1].square().mean().backward()
        torch.cuda.synchronize()

    return call


def parallel_in_time(quick: bool, clock: Clock) -> list[dict[str, Any]]:
    """The loop over time against all time steps at once."""
    import parallel_in_time as script

    options = argparse.Namespace(rounds=1 if quick else 5, seconds=1.0, dense_mib=256.0)
    widths, lengths = ((4,), (64,)) if quick else ((16, 64, 128), (1024, 4096, 16384, 65536))
    entries = []
    for length in lengths:
        for width in widths:
            for name in ("irnn",) if quick else ("irnn", "gru"):
                if not clock.is_over:
                    entries += script.measure(name, width, length, 1, options)
    return entries


def fptt_memory(quick: bool, clock: Clock) -> list[dict[str, Any]]:
    """Temporary memory of an update: FPTT against back-propagation through time."""
    import fptt_memory as script

    cells, lengths = (["irnn"], [256]) if quick else (list(script.CELLS), script.LENGTHS)
    return [
        {
            "cell": name,
            "length": length,
            "algorithm": algorithm,
            "temp_bytes": script.memory(script.CELLS[name], length, algorithm, "auto"),
        }
        for name, length, algorithm in itertools.product(cells, lengths, ("fptt", "bptt"))
        if not clock.is_over
    ]


# Whole systems.

#: Configs without prerequisites, whose data is in the package's dependencies.
SYSTEMS = (
    *("irnn", "tarnn", "fptt", "images", "global_cnn", "si_cnn", "shared_conv"),
    *("selective", "dcl", "avae"),
)


def system_parity(quick: bool, clock: Clock) -> dict[str, Any]:
    """One update of every system on this device against plain JAX on the CPU."""
    compared: dict[str, Any] = {}
    for name in SYSTEMS[:1] if quick else SYSTEMS:
        if clock.is_over:
            break
        try:
            compared[name] = _update_errors(name)
        except Exception as error:
            compared[name] = {"error": explained(error)}
    return compared


def _update_errors(name: str) -> dict[str, Any]:
    built = _built(name)
    batch = next(iter(built.train_batches()))
    state = built.init_state()

    def run(target: Any, form: str) -> Any:
        def update(state: Any, batch: Any) -> Any:
            with platform(form):
                return built.algorithm.update(state, batch)

        with jax.default_matmul_precision("highest"), jax.default_device(target):
            began = time.perf_counter()
            new, metrics = jax.jit(update)(*jax.device_put((state, batch), target))
            new = jax.device_get((new.params, metrics))
        return *new, time.perf_counter() - began

    here = jax.devices()[0]
    params, metrics, seconds = run(here, here.platform)
    expected, expected_metrics, _ = run(jax.devices("cpu")[0], "reference")
    moved, apart = (_difference(expected, other) for other in (state.params, params))
    return {
        "loss": float(metrics["loss"]),
        "loss_on_cpu": float(expected_metrics["loss"]),
        "parameters_apart_by_share_of_update": apart / moved,
        "first_call_s": seconds,
    }


def _difference(a: Any, b: Any) -> float:
    """Returns the norm of the difference of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(np.sqrt(sum(np.square(np.asarray(x, float) - y).sum() for x, y in pairs)))


def _built(name: str) -> Any:
    """Returns the experiment of a config's default, on one device."""
    from jaxeff.train import experiment

    config = config_of("", [], name)
    config.devices.cpu = 1
    _without_axis(config.model)
    return experiment.build(config)


def _without_axis(section: Any) -> None:
    """Takes the devices' axis out of a model: one device averages over nothing."""
    for field, value in section.items():
        if field == "axis_name":
            section[field] = ""
        elif hasattr(value, "items"):
            _without_axis(value)


def convolutional_speed(quick: bool, clock: Clock) -> dict[str, Any]:
    """Training and inference of ResNet-32 and of what stands in its place."""
    import cnn_speed as script

    batch = 8 if quick else 128
    names = ["ResNet32"] if quick else ["ResNet32", "ResNet32-Global, K=1", "ResNet32-SI"]
    networks = script.cifar()
    variants: dict[str, Call] = {}
    for name in names:
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            if not clock.is_over:
                spec = {**networks[name], "dtype": dtype}
                variants[f"{name}, {dtype}, training"] = script.step(spec, batch, 32, 10)
                variants[f"{name}, {dtype}, inference"] = script.forward(spec, batch, 32, 10, 3)[0]
    return {"batch": batch, "ms": timed(variants, quick, clock)}


def routing(quick: bool, clock: Clock) -> dict[str, Any]:
    """Batches that are routed between a base and an expert."""
    import routing_speed as script

    names = ["mlp"] if quick else list(script.PAIRS)
    return {name: script.compare(name, 1 if quick else 5) for name in names if not clock.is_over}


def pose_search(quick: bool, clock: Clock) -> dict[str, Any]:
    """The pose search of an autoencoder, by each of its ways."""
    import pose_search_speed as script

    built = _built("avae")
    state = built.init_state()
    variables = {"params": state.params, **state.model_state}
    images = script.some_images(built, 8 if quick else 128)
    quickest = list(script.WAYS)[-1:]
    ways = {name: script.WAYS[name] for name in (quickest if quick else script.WAYS)}
    calls, found = script.searches(built, variables, images, ways)
    results = {name: float(of_one.loss.mean()) for name, of_one in found.items()}
    return {"ms": timed(calls, quick, clock), "mean_loss": results}


Section = Callable[[bool, Clock], Any]
SECTIONS: dict[str, Section] = {
    "device": device,
    "kernel_parity": kernel_parity,
    "recurrent_speed": recurrent_speed,
    "system_parity": system_parity,
    "fptt_memory": fptt_memory,
    "parallel_in_time": parallel_in_time,
    "convolutional_speed": convolutional_speed,
    "routing": routing,
    "pose_search": pose_search,
}
