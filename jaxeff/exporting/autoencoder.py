"""Autoencoders: encoder, decoder, and the search for the pose."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxeff.exporting.entry import BATCH, Entry, Input
from jaxeff.exporting.systems import Exportable, entries
from jaxeff.models.autoencoder import Autoencoder
from jaxeff.typing import Array


@entries.register
def _(model: Autoencoder, source: Exportable) -> list[Entry]:
    """An encoder to mean and log-variance, a decoder of means, and what finds an image's pose.

    With poses, encoder and decoder take one beside the image and the code.
    """
    variables, images = source.constants, source.inputs

    def encode(x: Array, pose: Array | None = None) -> tuple[Array, ...]:
        encoded: Any = model.apply(variables, x, pose, method="encode")
        mean, log_variance = encoded
        return mean, log_variance

    def decode(z: Array, pose: Array | None = None) -> tuple[Array, ...]:
        drawn: Any = model.apply(variables, z, method="draw")
        placed: Any = model.apply(variables, drawn, pose, method="place")
        return (placed,)

    poses: dict[str, np.ndarray] = {}
    if model.family is not None:
        poses["pose"] = np.asarray(model.family.spread(len(images)))
    of_pose = {name: Input((BATCH, a.shape[1]), str(a.dtype)) for name, a in poses.items()}
    codes = np.asarray(jax.jit(encode)(images, *poses.values())[0])
    built = [
        Entry(
            "encoder",
            encode,
            {"inputs": source.input(), **of_pose},
            ("mean", "log_variance"),
            {"inputs": images, **poses},
            metadata=source.facts,
        ),
        Entry(
            "decoder",
            decode,
            {"mean": Input((BATCH, model.latents)), **of_pose},
            ("reconstruction",),
            {"mean": codes, **poses},
            metadata=source.facts,
        ),
    ]
    find_pose = source.find_pose
    if find_pose is not None:

        def search(x: Array) -> tuple[Array, ...]:
            found = find_pose(variables, x)
            return found.pose, found.loss

        inputs = {"inputs": source.input()}
        built.append(
            Entry(
                "pose_search",
                search,
                inputs,
                ("pose", "loss"),
                {"inputs": images},
                instead="encoder",
                minimisers=("pose",),
                metadata=source.facts,
            )
        )
    return built
