"""Text classifiers: a program for each of a few lengths, to which texts are filled up."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxeff.exporting.entry import BATCH, Entry, Input
from jaxeff.exporting.systems import Exportable, entries
from jaxeff.models.text import TextClassifier
from jaxeff.serving.text import lengths_up_to
from jaxeff.typing import Array


@entries.register
def _(model: TextClassifier, source: Exportable) -> list[Entry]:
    """Tokens and their mask to outputs, for every length that texts are filled up to."""
    variables, inputs = source.constants, source.inputs
    mask = np.ones(inputs.shape[:2], np.float32) if source.mask is None else source.mask

    def function(tokens: Array, mask: Array) -> tuple[Array, ...]:
        outputs: Any = model.apply(variables, tokens, mask=mask)
        return (outputs,)

    built = []
    for length in lengths_up_to(inputs.shape[1]):
        shape = (BATCH, length, *inputs.shape[2:])
        built.append(
            Entry(
                f"length_{length}",
                function,
                {"tokens": Input(shape, str(inputs.dtype)), "mask": Input(shape[:2])},
                ("outputs",),
                {"tokens": inputs[:, :length], "mask": mask[:, :length].astype(np.float32)},
                metadata={**source.facts, "length": length},
            )
        )
    return built
