"""Folds a network of tiled outputs into the equivalent narrow network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxeff.layers.shared_conv import group_sum
from jaxeff.typing import Array

TIED = "narrow"


def fold_output_tiles(variables: Mapping[str, Any], factor: int) -> dict[str, Any]:
    """Folds a residual network whose last stages, with shortcuts, have tiled outputs.

    Every feature map of those stages is ``factor`` equal copies, so kernels applied to it can be
    summed over the copies: ``W[:, :, j, o] = sum_r V[:, :, r C / s + j, o]``. The result fits the
    same host with the plain design and the widths of those stages divided by ``factor``. Outputs
    are equal, at a ``factor`` times smaller cost per convolution.

    Args:
      variables: ``params`` and ``batch_stats`` of a ResNet with the design "shared", mode
        "out_tile" and ``share_shortcut``, all stages after the first tied one being tied too.
      factor: the sharing factor.

    Raises:
      ValueError: a shortcut is not tied, or the copies are modulated, so that they differ.
    """
    params = flatten_dict(dict(variables["params"]))
    tied_blocks = sorted({path[0] for path in params if TIED in path}, key=_position)
    if not tied_blocks:
        raise ValueError("the network has no tiled outputs to fold")
    for path in params:
        if path[0] not in tied_blocks:
            continue
        if path[1] == "shortcut" and TIED not in path:
            raise ValueError(
                f"{path[0]} has a shortcut of full width, so that its copies differ; only networks "
                f"with share_shortcut=True can be folded"
            )
        if path[-1] in ("scale", "shift") and path[-2] != "norm":
            raise ValueError(f"{'/'.join(path)} modulates the copies, so that they differ")

    def reads_copies(path: tuple[str, ...]) -> bool:
        entry = path[0] == tied_blocks[0] and path[1:3] in (("body", "conv1"), ("shortcut", TIED))
        return path[0] in tied_blocks and path[-2] == "conv" and not entry

    def folded(path: tuple[str, ...], value: Array) -> Array:
        if reads_copies(path):
            swapped = value.swapaxes(-1, -2)
            return group_sum(swapped, factor).swapaxes(-1, -2)
        if path == ("head", "classifier", "kernel"):
            return group_sum(value.T, factor).T
        return value

    def renamed(flat: dict[tuple[str, ...], Array]) -> dict[str, Any]:
        return unflatten_dict({tuple(p for p in path if p != TIED): v for path, v in flat.items()})

    narrow = {path: folded(path, value) for path, value in params.items()}
    return {
        "params": renamed(narrow),
        "batch_stats": renamed(flatten_dict(dict(variables["batch_stats"]))),
    }


def _position(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("_")[1:])
