"""A trained text classifier with its tokeniser: a folder that answers strings.

Programs have static shapes. Texts are padded to the next of a few lengths and calls to the next of
a few batch sizes, so that however texts come, few programs are compiled. Padding changes no answer,
but where bottlenecks merge tokens by their likeness.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.data import tokens
from jaxeff.data.model_folder import CONFIG, TOKENIZER
from jaxeff.data.tokens import Tokenizer
from jaxeff.errors import DataError, UserError
from jaxeff.models import MODELS
from jaxeff.models.text import TextClassifier
from jaxeff.version import __version__

WEIGHTS = "weights.npz"
BATCHES = (1, 8, 32)
SHORTEST = 8


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a classifier says of a text.

    Attributes:
      label: name of the likeliest class.
      probabilities: of all classes, by name.
    """

    label: str
    probabilities: Mapping[str, float]


class TextModel:
    """Classifies strings.

    Args:
      network: the classifier.
      params: its parameters.
      tokenizer: maps texts to its tokens.
      class_names: names of its outputs.
      length: tokens of a text, at most; the rest is cut off.
    """

    def __init__(
        self,
        network: TextClassifier,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        length: int,
    ):
        self.network, self.tokenizer, self.length = network, tokenizer, length
        self.class_names = tuple(class_names)
        self.params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        self.lengths = [*_doubled(SHORTEST, length), length]
        self._programs: dict[tuple[int, int], Any] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far, at most one for each batch size and length."""
        return len(self._programs)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the outputs ``[texts, classes]``.

        Raises:
          UserError: texts is one string instead of several.
        """
        if isinstance(texts, str):
            raise UserError("predict takes a list of texts, not one text; write [text]")
        codes = self.tokenizer.encode(texts, self.length)
        found = np.zeros((len(texts), len(self.class_names)), np.float32)
        # Texts of a bucket go together, so that short ones are not padded to the longest of all.
        buckets: dict[int, list[int]] = {}
        for row, own in enumerate(codes):
            bucket = self.lengths[bisect.bisect_left(self.lengths, len(own))]
            buckets.setdefault(bucket, []).append(row)
        for length, members in sorted(buckets.items()):
            for first in range(0, len(members), BATCHES[-1]):
                rows = members[first : first + BATCHES[-1]]
                found[rows] = self._call([codes[row] for row in rows], length)
        return found

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Returns a prediction for each text; pairs are joined by ``tokenizer.separator``."""
        shares = np.asarray(jax.nn.softmax(self.logits(texts), axis=-1))
        names = self.class_names
        return [
            Prediction(names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True)))
            for row in shares
        ]

    def _call(self, codes: Sequence[Sequence[int]], length: int) -> np.ndarray:
        batch = BATCHES[bisect.bisect_left(BATCHES, len(codes))]
        inputs, lengths = tokens.padded(codes, length)
        inputs = np.pad(inputs, ((0, batch - len(codes)), (0, 0)))
        lengths = np.pad(lengths, (0, batch - len(codes)))
        mask = (np.arange(length) < lengths[:, None]).astype(np.float32)
        if (batch, length) not in self._programs:
            jitted: Any = jax.jit(lambda p, x, m: self.network.apply({"params": p}, x, mask=m))
            program = jitted.lower(self.params, inputs, mask).compile()
            self._programs[batch, length] = program
        outputs = self._programs[batch, length](self.params, inputs, mask)
        return np.asarray(outputs.astype(jnp.float32))[: len(codes)]

    def save(self, folder: str | Path) -> None:
        """Writes ``config.json``, ``weights.npz`` and ``tokenizer.json``, all that is needed.

        Raises:
          UserError: the folder cannot be written.
        """
        encoder = self.network.encoder
        plan = dataclasses.asdict(encoder.plan)
        config = {
            "jaxeff": __version__,
            "model": {
                "name": "encoder",
                "shape": dataclasses.asdict(encoder.shape),
                **plan,
                "dtype": jnp.dtype(self.network.dtype).name,
            },
            "class_names": self.class_names,
            "length": self.length,
        }
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (folder / TOKENIZER).write_text(self.tokenizer.json, encoding="utf-8")
            flat = flax.traverse_util.flatten_dict(jax.device_get(self.params), sep="/")
            np.savez(folder / WEIGHTS, **flat)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None

    @classmethod
    def load(cls, folder: str | Path) -> TextModel:
        """Reads a folder that `save` wrote.

        Raises:
          DataError: files are missing or damaged, or the weights do not fit; they are named.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            names, length = tuple(config["class_names"]), int(config["length"])
            network = MODELS.build(config["model"], num_outputs=len(names))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / CONFIG}: is no text model's config ({error})") from None
        try:
            with np.load(folder / WEIGHTS) as arrays:
                given = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # whatever a damaged archive makes the reader raise
            raise DataError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
        example = jax.ShapeDtypeStruct((1, length), jnp.int32)
        shapes: Any = jax.eval_shape(network.init, jax.random.key(0), example)
        wanted = flax.traverse_util.flatten_dict(shapes["params"], sep="/")
        wrong = [
            name
            for name in sorted({*wanted, *given})
            if name not in wanted or name not in given or wanted[name].shape != given[name].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise DataError(
                f"{folder / WEIGHTS}: {', '.join(wrong[:5])}{more} missing, unknown or misshapen; "
                f"it does not fit {CONFIG}"
            )
        params = flax.traverse_util.unflatten_dict(given, sep="/")
        return cls(network, params, tokens.load(folder / TOKENIZER), names, length)


def _doubled(first: int, below: int) -> list[int]:
    """Returns ``first`` and its doubles that are smaller than ``below``."""
    found = []
    while first < below:
        found.append(first)
        first *= 2
    return found
