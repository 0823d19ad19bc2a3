"""A trained text classifier with its tokeniser: a folder that answers strings.

Programs have static shapes. Texts are padded to the next of a few lengths and calls to the next of
a few batch sizes, so that however texts come, few programs are compiled. Padding changes no answer,
but where bottlenecks merge tokens by their likeness.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import io
import json
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.data import tokens
from jaxeff.data.tokens import Texts, Tokenizer, Tokens
from jaxeff.errors import DataError, UserError
from jaxeff.files import reading
from jaxeff.hub.model_folder import CONFIG, TOKENIZER
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
        self._programs: dict[tuple[int, ...], Any] = {}

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
        """Programs compiled so far, at most one for each batch size and length, and for pairs."""
        return len(self._programs)

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
        if inputs.shape not in self._programs:
            jitted: Any = jax.jit(lambda p, x, m: self.network.apply({"params": p}, x, mask=m))
            program = jitted.lower(self.params, inputs, mask).compile()
            self._programs[inputs.shape] = program
        outputs = self._programs[inputs.shape](self.params, inputs, mask)
        return np.asarray(outputs.astype(jnp.float32))[: len(codes)]

    def save(self, folder: str | Path) -> None:
        """Writes ``config.json``, ``weights.npz`` and ``tokenizer.json``, all that is needed.

        All of them are written before the first takes its place, and the config knows the others'
        contents: what was there stays whole if they cannot be written, and files of two models are
        not taken for one.

        Raises:
          UserError: the folder cannot be written.
        """
        encoder = self.network.encoder
        plan = dataclasses.asdict(encoder.plan)
        flat = flax.traverse_util.flatten_dict(jax.device_get(self.params), sep="/")
        weights = io.BytesIO()
        # NumPy's files have no 16-bit floats of the kind bfloat16; float32 holds them exactly.
        np.savez(
            weights, **{n: v.astype(np.promote_types(v.dtype, np.float32)) for n, v in flat.items()}
        )
        contents = {WEIGHTS: weights.getvalue(), TOKENIZER: self.tokenizer.json.encode()}
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
            "digests": {name: _digest(content) for name, content in contents.items()},
        }
        contents[CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
        try:
            reading.replace_all(Path(folder), contents)
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
            config = json.loads(reading.read_text(folder / CONFIG, limit=reading.MAX_JSON_BYTES))
            names, length = tuple(config["class_names"]), int(config["length"])
            digests = dict(config.get("digests", {}))
            network = MODELS.build(config["model"], num_outputs=len(names))
        except Exception as error:  # whatever is in its place
            reason = str(error).removeprefix(f"{folder / CONFIG}: ")[:300] or type(error).__name__
            raise DataError(f"{folder / CONFIG}: is no text model's config ({reason})") from None
        weights = folder / WEIGHTS
        # The arrays are stored as they are, so that the file is at least as large as they.
        stored = reading.read_npz(weights, weights.stat().st_size if weights.is_file() else 0)
        layers = network.encoder.shape.layers
        if layers > len(stored):  # too many to be traced
            raise DataError(
                f"{weights}: {len(stored)} arrays are too few for the {layers} layers of {CONFIG}"
            )
        # A length that does not fit is refused below; parameters do not depend on it.
        longest = network.encoder.shape.max_length
        example = jax.ShapeDtypeStruct((1, min(max(length, 1), longest)), jnp.int32)
        shapes: Any = jax.eval_shape(network.init, jax.random.key(0), example)
        expected = flax.traverse_util.flatten_dict(shapes["params"], sep="/")
        wrong = [
            name
            for name in sorted({*expected, *stored})
            if name not in expected
            or name not in stored
            or expected[name].shape != stored[name].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise DataError(
                f"{folder / WEIGHTS}: {', '.join(wrong[:5])}{more} missing, unknown or misshapen; "
                f"it does not fit {CONFIG}"
            )
        for name, digest in digests.items():
            if name not in (WEIGHTS, TOKENIZER) or _digest(_content(folder / name)) != digest:
                raise DataError(
                    f"{folder / name}: was changed, or is not of the same model as {CONFIG}; save "
                    "the model again"
                )
        spoilt = next((n for n in sorted(stored) if not _is_finite(stored[n])), None)
        if spoilt is not None:
            raise DataError(f"{weights}: {spoilt} holds no numbers, or some that are not finite")
        params = flax.traverse_util.unflatten_dict(stored, sep="/")
        tokenizer = tokens.load(folder / TOKENIZER)
        try:
            return cls(network, params, tokenizer, names, length)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and bool(np.isfinite(values).all())


def lengths_up_to(longest: int) -> list[int]:
    """Returns the lengths to which texts are filled up: `SHORTEST`, its doubles, the longest."""
    lengths, length = [], SHORTEST
    while length < longest:
        lengths.append(length)
        length *= 2
    return [*lengths, longest]
