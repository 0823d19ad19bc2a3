"""A trained text classifier with its tokeniser: a folder that answers strings.

Programs have static shapes. Texts are padded to the next of a few lengths and calls to the next of
a few batch sizes, so that however texts come, few programs are compiled. Padding changes no answer,
but where bottlenecks merge tokens by their likeness.
"""

from __future__ import annotations

import bisect
import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.data import preprocessing, tokens
from jaxeff.data.snippets import TextPreprocessing
from jaxeff.data.tokens import Texts, Tokenizer, Tokens
from jaxeff.errors import DataError, UserError
from jaxeff.hub import saved_folder
from jaxeff.hub.model_folder import CONFIG, WEIGHTS
from jaxeff.models import MODELS
from jaxeff.models.text import TextClassifier, inference_program
from jaxeff.version import __version__

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

    Raises:
      DataError: the tokeniser has more tokens than the network, a text may be longer than the table
        of positions, or the outputs are not as many as the names.
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
        self._check_sizes()
        self.params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
        self.lengths = lengths_up_to(length)
        self._program = inference_program(network)
        self._shapes: set[tuple[int, ...]] = set()

    def _check_sizes(self) -> None:
        shape = self.network.encoder.shape
        if self.tokenizer.size > shape.vocabulary:
            raise DataError(
                f"the tokeniser has a vocabulary of {self.tokenizer.size}, but the network's table "
                f"has {shape.vocabulary} tokens; take the tokeniser that it was trained with"
            )
        if not isinstance(self.length, numbers.Integral) or not (
            0 < self.length <= shape.max_length
        ):
            raise DataError(
                f"a length of {self.length} tokens does not fit the network, which has positions "
                f"for 1 to {shape.max_length}"
            )
        if len(self.class_names) != self.network.num_outputs:
            raise DataError(
                f"{len(self.class_names)} class names do not fit the network's "
                f"{self.network.num_outputs} outputs"
            )
        if len(set(self.class_names)) < len(self.class_names):
            raise DataError(f"two of the class names are the same: {self.class_names}")

    @property
    def compilations(self) -> int:
        """Programs used so far, at most one for each batch size and length, and for pairs."""
        return len(self._shapes)

    def logits(self, texts: Sequence[Texts]) -> np.ndarray:
        """Returns the outputs ``[texts, classes]``.

        Args:
          texts: strings; pairs are tuples of two, or joined by ``tokenizer.separator``.

        Raises:
          UserError: texts is one string instead of several, or a row is no text; it is named.
        """
        if isinstance(texts, str):
            raise UserError("predict takes a list of texts, not one text; write [text]")
        if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
            raise UserError(f"predict takes a list of texts, not a {type(texts).__name__}")
        texts = tokens.checked(texts, "texts")
        codes = self.tokenizer.typed(texts, self.length) if texts else []
        outputs = np.zeros((len(texts), len(self.class_names)), np.float32)
        # Texts of a bucket go together, so that short ones are not padded to the longest of all.
        buckets: dict[int, list[int]] = {}
        for row, code in enumerate(codes):
            bucket = self.lengths[bisect.bisect_left(self.lengths, len(code.ids))]
            buckets.setdefault(bucket, []).append(row)
        for length, members in sorted(buckets.items()):
            for first in range(0, len(members), BATCHES[-1]):
                rows = members[first : first + BATCHES[-1]]
                outputs[rows] = self._call([codes[row] for row in rows], length)
        return outputs

    def predict(self, texts: Sequence[Texts]) -> list[Prediction]:
        """Returns a prediction for each text; see `logits`.

        Raises:
          UserError: also where an output is not finite, which names no class.
        """
        outputs = self.logits(texts)
        wrong = np.flatnonzero(~np.isfinite(outputs).all(-1))
        if len(wrong):
            raise UserError(
                f"texts: the network's output for row {wrong[0]} is NaN or infinite; train it "
                "again, or compute in float32"
            )
        shares = np.asarray(jax.nn.softmax(outputs, axis=-1))
        names = self.class_names
        return [
            Prediction(names[int(row.argmax())], dict(zip(names, row.tolist(), strict=True)))
            for row in shares
        ]

    def _call(self, codes: Sequence[Tokens], length: int) -> np.ndarray:
        batch = BATCHES[bisect.bisect_left(BATCHES, len(codes))]
        inputs, lengths = tokens.padded_typed(codes, length)
        rows = batch - len(codes)
        inputs = np.pad(inputs, ((0, rows), *[(0, 0)] * (inputs.ndim - 1)))
        lengths = np.pad(lengths, (0, rows))
        mask = (np.arange(length) < lengths[:, None]).astype(np.float32)
        self._shapes.add(inputs.shape)
        outputs = self._program({"params": self.params}, inputs, mask)
        return np.asarray(outputs.astype(jnp.float32))[: len(codes)]

    def save(self, folder: str | Path) -> None:
        """Writes a folder that has all that is needed, and that `jaxeff.load` reads too.

        All of them are written before the first takes its place, and the config knows the others'
        contents: what was there stays whole if they cannot be written, and files of two models are
        not taken for one.

        Raises:
          UserError: the folder cannot be written.
        """
        encoder = self.network.encoder
        classes = len(self.class_names)
        config = {
            "jaxeff": __version__,
            "model": {
                "name": "encoder",
                "shape": dataclasses.asdict(encoder.shape),
                **dataclasses.asdict(encoder.plan),
                "dtype": jnp.dtype(self.network.dtype).name,
            },
            "num_outputs": classes,
            "dataset": {
                "name": "texts",
                "task": "classification",
                "num_classes": classes,
                "num_outputs": classes,
                "input_shape": (self.length, 2) if encoder.shape.types else (self.length,),
                "description": "texts",
                "class_names": self.class_names,
                "input_dtype": "int32",
                "vocabulary": self.tokenizer.size,
            },
        }
        steps = TextPreprocessing(self.tokenizer, self.length, bool(encoder.shape.types))
        flat = flax.traverse_util.flatten_dict({"params": jax.device_get(self.params)}, sep="/")
        saved_folder.write(Path(folder), config, flat, preprocessing.contents(steps))

    @classmethod
    def load(cls, folder: str | Path) -> TextModel:
        """Reads a folder that `save` wrote, or `jaxeff.load`'s of a text classifier.

        Raises:
          DataError: files are missing or damaged, or the weights do not fit; they are named.
        """
        folder = Path(folder)
        try:
            config = saved_folder.read_config(folder)
        except DataError as error:
            if "was changed" in str(error):
                raise
            raise DataError(
                f"{folder / CONFIG}: is no text model's config ({_reason(error, folder)})"
            ) from None
        try:
            names = tuple(config["dataset"]["class_names"])
            network = MODELS.build(config["model"], "model", num_outputs=len(names))
            layers, longest = network.encoder.shape.layers, network.encoder.shape.max_length
        except Exception as error:  # whatever is in its place
            raise DataError(
                f"{folder / CONFIG}: is no text model's config ({_reason(error, folder)})"
            ) from None
        stored = saved_folder.read_tensors(folder)
        weights = folder / WEIGHTS
        if layers > len(stored):  # too many to be traced
            raise DataError(
                f"{weights}: {len(stored)} arrays are too few for the {layers} layers of {CONFIG}"
            )
        steps = preprocessing.read(folder)
        if not isinstance(steps, TextPreprocessing):
            raise DataError(f"{folder}: is a model of other inputs than texts; use jaxeff.load")
        # A length that does not fit is refused below; parameters do not depend on it.
        example = jax.ShapeDtypeStruct((1, min(max(steps.length, 1), longest)), jnp.int32)
        shapes: Any = jax.eval_shape(network.init, jax.random.key(0), example)
        saved_folder.check_fit(weights, flax.traverse_util.flatten_dict(shapes, sep="/"), stored)
        spoilt = next((n for n in sorted(stored) if not _is_finite(stored[n])), None)
        if spoilt is not None:
            raise DataError(f"{weights}: {spoilt} holds no numbers, or some that are not finite")
        params = flax.traverse_util.unflatten_dict(stored, sep="/")["params"]
        try:
            return cls(network, params, steps.tokenizer, names, steps.length)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None


def _reason(error: Exception, folder: Path) -> str:
    return str(error).removeprefix(f"{folder / CONFIG}: ")[:300] or type(error).__name__


def _is_finite(values: np.ndarray) -> bool:
    return jnp.issubdtype(values.dtype, jnp.floating) and bool(np.isfinite(values).all())


def lengths_up_to(longest: int) -> list[int]:
    """Returns the lengths to which texts are filled up: `SHORTEST`, its doubles, the longest."""
    lengths, length = [], SHORTEST
    while length < longest:
        lengths.append(length)
        length *= 2
    return [*lengths, longest]
