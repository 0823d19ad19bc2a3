"""A trained text classifier as a folder that answers strings, and how fast it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxeff import bench, data
from jaxeff.analyses.base import ANALYSES, Findings, TrainingResult
from jaxeff.arguments import require_whole
from jaxeff.errors import ConfigError
from jaxeff.models.encoder import Encoder
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.text import TextClassifier
from jaxeff.search.measure import network_call
from jaxeff.serving import TextModel

FOLDER = "model"


@ANALYSES.register("text_model")
@dataclasses.dataclass(frozen=True)
class ExportedTextModel:
    """Writes the model with its tokeniser, reads it again, and times it beside the full encoder.

    Attributes:
      batches: sequences in a timed call; all have the data's length, without padding.
      rounds: turns of the timing, each of three calls.
      examples: test texts on which what was read must answer as what was written.
    """

    batches: Sequence[int] = (1, 32)
    rounds: int = 10
    examples: int = 64

    def __post_init__(self) -> None:
        for field in ("rounds", "examples"):
            require_whole(field, getattr(self, field), 1)
        for batch in self.batches:
            require_whole("batches: each", batch, 1)

    def check(self, model: nn.Module, dataset: data.Dataset) -> None:
        """Raises `ConfigError` for another model, or for data that is no text."""
        if not isinstance(model, TextClassifier):
            raise ConfigError("analysis 'text_model' needs config.model.name='encoder'")
        if getattr(dataset.splits["test"], "tokenizer", None) is None:
            raise ConfigError(
                f"analysis 'text_model' needs texts, which data '{dataset.name}' is not"
            )

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """See `jaxeff.analyses.Analysis`."""
        network: Any = trained.model
        split: Any = trained.dataset.splits["test"]
        length = trained.dataset.input_shape[0]
        facts = split.tokenizer, trained.dataset.class_names, length
        model = TextModel(network, trained.variables["params"], *facts)
        model.save(workdir / FOLDER)
        texts = [split.texts[row] for row in split.indices[: self.examples]]
        before, after = (m.logits(texts) for m in (model, TextModel.load(workdir / FOLDER)))
        encoder = network.encoder
        full = Encoder(encoder.shape, EncoderPlan(encoder.shape.layers), encoder.dtype)
        networks = {
            "network": network,
            "full": TextClassifier(full, network.num_outputs, network.dtype),
        }
        latency = {}
        for batch in self.batches:
            calls = {name: network_call(net, batch, length) for name, net in networks.items()}
            times = bench.interleaved(calls, self.rounds, 3)
            latency[f"batch_{batch}"] = {name: time.median_ms for name, time in times.items()}
        return Findings(
            {
                "latency_ms": latency,
                "difference_after_reading": float(np.abs(before - after).max()),
                "accuracy_of_examples": float(
                    np.mean(after.argmax(-1) == split.labels[split.indices[: self.examples]])
                ),
            },
            {"text_model": FOLDER},
        )
