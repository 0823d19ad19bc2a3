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


def all_reduce_seconds(kind: str, sizes: tuple[int, ...], nbytes: float) -> float:
    """Estimates an all-reduce over all devices of a topology.

    Every device sends nearly twice the bytes, and the first of them must reach the last device and
    come back. TPUs reduce along the sides of their grid, at half the bandwidth where the sides do
    not close to rings. Several hosts of GPUs reduce inside first, then each GPU its part with its
    peers of the other hosts.

    Args:
      kind: name in `CHIPS`.
      sizes: of the grid of TPUs, or (GPUs,).
      nbytes: of the reduced arrays on one device.

    Returns:
      seconds; 0 for one device.
    """
    chip, devices = CHIPS[kind], math.prod(sizes)
    if devices == 1:
        return 0.0
    if chip.platform == "tpu":
        rings = all(side % RING[kind] == 0 for side in sizes)
        hops = sum(sizes) if rings else 2 * sum(side - 1 for side in sizes)
        bandwidth = chip.link_bandwidth * (1.0 if rings else 0.5)
        return hops * chip.latency + 2 * nbytes * (1 - 1 / devices) / bandwidth
    inside = min(devices, GPUS_PER_HOST)
    hosts = devices // inside
    seconds = chip.latency + 2 * nbytes * (1 - 1 / inside) / chip.link_bandwidth
    if hosts > 1:
        steps = 2 * math.ceil(math.log2(hosts))
        sent = 2 * nbytes / inside * (1 - 1 / hosts)
        seconds += steps * chip.latency + sent / chip.network_bandwidth
    return seconds
