"""What accelerators can do, by their makers' sheets; for estimates, never for measurements."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a kind.

    Attributes:
      platform: "tpu" or "gpu".
      memory_bytes: that a program may use, as the compiler counts it.
      flops: multiplications and additions per second in bfloat16, with dense operands.
      memory_bandwidth: bytes per second from and to its memory.
      link_bandwidth: bytes per second that it sends to the other devices of a slice or host.
      latency: seconds of one hop to a neighbour (TPU), or of a whole small all-reduce (GPU).
      network_bandwidth: bytes per second that it sends to other slices or hosts.
    """

    platform: str
    memory_bytes: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    latency: float
    network_bandwidth: float


#: From Google's pages "TPU v5e", "TPU v6e" and "TPU v5p" (cloud.google.com/tpu/docs), where half of
#: a chip's bidirectional bandwidth goes out, and NVIDIA's data sheets of the H100 and H200 SXM. The
#: latencies are assumptions: a microsecond per hop; 20 for NCCL's smallest all-reduce on a host.
CHIPS = {
    "v5e": Chip("tpu", int(15.75 * 2**30), 197e12, 819e9, 200e9, 1e-6, 3.1e9),
    "v6e": Chip("tpu", int(31.24 * 2**30), 918e12, 1640e9, 400e9, 1e-6, 12.5e9),
    "v5p": Chip("tpu", int(95.73 * 2**30), 459e12, 2765e9, 600e9, 1e-6, 6.25e9),
    "h100": Chip("gpu", 84_978_434_048, 989e12, 3350e9, 450e9, 20e-6, 50e9),
    "h200": Chip("gpu", 151_397_597_184, 989e12, 4800e9, 450e9, 20e-6, 50e9),
}
#: Sides of a TPU slice at which its links close to rings.
RING = {"v5e": 16, "v6e": 16, "v5p": 4}
#: GPUs that share a host's links.
GPUS_PER_HOST = 8
#: Seconds, assumed, that a message takes from one slice or host to another.
NETWORK_LATENCY = 20e-6


def all_reduce_seconds(
    kind: str, sizes: tuple[int, ...], nbytes: float, *, slices: int = 1
) -> float:
    """Estimates an all-reduce over all devices of a topology.

    Every device sends nearly twice the bytes, and the first of them must reach the last device and
    come back. TPUs reduce along the sides of their grid, at half the bandwidth where the sides do
    not close to rings. Several slices of TPUs, or hosts of GPUs, reduce inside first, then each
    device its part with its peers of the others.

    Args:
      kind: name in `CHIPS`.
      sizes: of the grid of TPUs of a slice, or (GPUs of all hosts,).
      nbytes: of the reduced arrays on one device.
      slices: number of slices of TPUs.

    Returns:
      seconds; 0 for one device.
    """
    chip, devices = CHIPS[kind], math.prod(sizes)
    if chip.platform == "tpu":
        inside, groups = devices, slices
        rings = all(side % RING[kind] == 0 for side in sizes)
        hops = sum(sizes) if rings else 2 * sum(side - 1 for side in sizes)
        latency, bandwidth = hops * chip.latency, chip.link_bandwidth * (1.0 if rings else 0.5)
    else:
        inside, groups = min(devices, GPUS_PER_HOST), max(1, devices // GPUS_PER_HOST)
        latency, bandwidth = chip.latency, chip.link_bandwidth
    seconds = latency + 2 * nbytes * (1 - 1 / inside) / bandwidth if inside > 1 else 0.0
    if groups > 1:
        sent = 2 * nbytes / inside * (1 - 1 / groups)
        steps = 2 * math.ceil(math.log2(groups))
        seconds += steps * NETWORK_LATENCY + sent / chip.network_bandwidth
    return seconds


def hidden_batch(kind: str, exchange_seconds: float, flops_per_example: float) -> float:
    """Returns the examples per device from which on arithmetic takes longer than the exchange.

    The arithmetic is taken at the chip's peak, so that this is the most that can be needed: at a
    tenth of the peak a tenth of the examples is enough.
    """
    return exchange_seconds * CHIPS[kind].flops / flops_per_example


def scaling_efficiency(
    kind: str, exchange_seconds: float, flops_per_example: float, batch: float
) -> float:
    """Returns the share of a step that is arithmetic, with an exchange that nothing hides.

    A lower bound, because the arithmetic is taken at the chip's peak.

    Args:
      kind: name in `CHIPS`.
      exchange_seconds: of all exchanges of a step.
      flops_per_example: of a step.
      batch: examples per device.
    """
    seconds = batch * flops_per_example / CHIPS[kind].flops
    return seconds / (seconds + exchange_seconds)
