"""Pretrained text encoders from folders in Hugging Face's layout.

`jaxeff.hub.model_folder` locates the folders. Tensors are matched by name; missing, unknown or
misshapen ones are errors; heads of other tasks are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError, DataError
from jaxeff.files import reading
from jaxeff.hub import safetensor_files
from jaxeff.hub.model_folder import CONFIG, locate
from jaxeff.models.encoder import ACTIVATIONS, EncoderShape

_QKV = "query_key_value"
# Hugging Face's module names to ours; query, key and value become one kernel.
_BERT = {
    "attention.self.query": f"{_QKV}/0",
    "attention.self.key": f"{_QKV}/1",
    "attention.self.value": f"{_QKV}/2",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm_attention",
    "intermediate.dense": "inner",
    "output.dense": "outer",
    "output.LayerNorm": "norm_output",
}
_DISTILBERT = {
    "attention.q_lin": f"{_QKV}/0",
    "attention.k_lin": f"{_QKV}/1",
    "attention.v_lin": f"{_QKV}/2",
    "attention.out_lin": "out",
    "sa_layer_norm": "norm_attention",
    "ffn.lin1": "inner",
    "ffn.lin2": "outer",
    "output_layer_norm": "norm_output",
}
_TABLES = {"word": "tokens", "position": "positions", "token_type": "types"}


@dataclasses.dataclass(frozen=True)
class _Family:
    """Names of sizes and tensors of a kind of model.

    Attributes:
      layers: name prefix of a layer's number.
      modules: Hugging Face's module names in a layer to ours.
      sizes: fields of `EncoderShape` to their names in the config.
      defaults: values of missing config fields, as in the library transformers.
      ignored: pattern of tensors that do not belong to the encoder.
    """

    layers: str
    modules: Mapping[str, str]
    sizes: Mapping[str, str]
    defaults: Mapping[str, Any]
    ignored: str


_BERT_SIZES = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "epsilon": "layer_norm_eps",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
}
_DISTILBERT_SIZES = {
    "vocabulary": "vocab_size",
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "hidden": "hidden_dim",
    "positions": "max_position_embeddings",
    "activation": "activation",
    "dropout": "dropout",
}
_HEADS = r"(pooler|cls|lm_head|classifier|pre_classifier|qa_outputs|vocab_\w+)\..*"
_IGNORED = rf"embeddings\.(position_ids|token_type_ids)|{_HEADS}"
_DEFAULTS = {
    "vocabulary": 30522,
    "width": 768,
    "layers": 12,
    "heads": 12,
    "hidden": 3072,
    "positions": 512,
    "types": 2,
    "epsilon": 1e-12,
    "activation": "gelu",
    "dropout": 0.1,
}
_BERT_FAMILY = _Family("encoder.layer", _BERT, _BERT_SIZES, _DEFAULTS, _IGNORED)
FAMILIES = {
    "bert": _BERT_FAMILY,
    "roberta": dataclasses.replace(_BERT_FAMILY, defaults={**_DEFAULTS, "vocabulary": 50265}),
    "xlm-roberta": _BERT_FAMILY,
    "distilbert": _Family(
        "transformer.layer", _DISTILBERT, _DISTILBERT_SIZES, {**_DEFAULTS, "layers": 6}, _IGNORED
    ),
}
#: Alternative names of activations.
_ACTIVATIONS = {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
}
#: Prefixes of tensor names: those of trainers, and the model's name.
_PREFIX = re.compile(r"((module|model|_orig_mod|auto_model|\d+)\.)*((bert|roberta|distilbert)\.)?")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder.

    Attributes:
      shape: its sizes.
      params: parameters of an `jaxeff.models.encoder.Encoder` of full depth without cuts.
      folder: its source.
    """

    shape: EncoderShape
    params: dict[str, Any]
    folder: Path


def read_shape(folder: Path) -> tuple[EncoderShape, str]:
    """Returns the sizes and the kind of model from a folder's ``config.json``.

    Raises:
      DataError: the file is missing or damaged, or the model is of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(reading.read_text(path, limit=reading.MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds a {type(config).__name__}, not the fields of a model")
    kind = str(config.get("model_type") or _kind(config))
    if kind not in FAMILIES:
        raise DataError(
            f"{path}: model_type {kind!r} is not supported; choose a model of type "
            f"{', '.join(FAMILIES)}"
        )
    if (config.get("position_embedding_type") or "absolute") != "absolute":
        raise DataError(f"{path}: only absolute positions are supported")
    if config.get("is_decoder"):
        raise DataError(f"{path}: is_decoder is true, but only encoders are supported")
    family = FAMILIES[kind]
    fields = {
        ours: family.defaults[ours] if config.get(theirs) is None else config[theirs]
        for ours, theirs in family.sizes.items()
    }
    fields["activation"] = _ACTIVATIONS.get(str(fields["activation"]), fields["activation"])
    if str(fields["activation"]) not in ACTIVATIONS:
        raise DataError(f"{path}: the activation '{fields['activation']}' is not supported")
    try:
        if "roberta" in kind:
            padding = config.get("pad_token_id")
            fields["first_position"] = (1 if padding is None else int(padding)) + 1
        fields.setdefault("types", 0)
        return EncoderShape(**fields), kind
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def _kind(config: Mapping[str, Any]) -> str:
    """Returns the kind of a model whose config has no ``model_type`` (older files)."""
    named = config.get("architectures") or [""]
    name = str(named[0] if isinstance(named, list) else named).lower()
    kinds = sorted(FAMILIES, key=len, reverse=True)
    return next((kind for kind in kinds if name.startswith(kind.replace("-", ""))), "")


def load(name: str) -> Pretrained:
    """Loads a pretrained encoder by a name that `jaxeff.hub.model_folder.locate` knows.

    Raises:
      DataError: files are missing or damaged, or tensors are missing, unknown or misshapen.
    """
    folder = locate(name)
    read = [folder / CONFIG, *safetensor_files.parts(folder)]
    # Caches two models; the stamps invalidate entries whose files have changed.
    stats = [path.stat() for path in read if path.is_file()]
    return _load(folder, tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats))


@functools.lru_cache(maxsize=2)
def _load(folder: Path, stamps: tuple[tuple[int, ...], ...]) -> Pretrained:
    shape, kind = read_shape(folder)
    paths = safetensor_files.parts(folder)
    tensors = safetensor_files.read(paths)
    return Pretrained(shape, from_tensors(tensors, shape, kind, str(paths[0])), folder)


def from_tensors(
    tensors: Mapping[str, np.ndarray], shape: EncoderShape, kind: str, source: str
) -> dict[str, Any]:
    """Returns the parameters of an `Encoder` from named PyTorch tensors.

    Args:
      tensors: the tensors; matrices are ``[outputs, inputs]``.
      shape: sizes to check against.
      kind: a name in `FAMILIES`.
      source: for messages.

    Raises:
      DataError: tensors are missing, unknown or misshapen; the message names them.
    """
    family = FAMILIES[kind]
    if shape.layers > len(tensors):  # a missing-tensor list would be too long
        raise DataError(
            f"{source} has {len(tensors)} tensors for the {shape.layers} layers of {CONFIG}"
        )
    expected = _wanted(shape, family)
    renamed: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        plain = _plain(name)
        if plain in renamed and plain in expected:
            raise DataError(f"{source} has two tensors for {plain}; keep one")
        renamed[plain] = value
    unknown = [n for n in renamed if n not in expected and not re.fullmatch(family.ignored, n)]
    missing = [n for n in expected if n not in renamed]
    misshapen = [
        f"{n} is {renamed[n].shape}, not {size}"
        for n, (_, size) in expected.items()
        if n in renamed and renamed[n].shape != size
    ]
    for what, names in (
        ("has no", missing),
        ("has unknown", unknown),
        ("is misshapen:", misshapen),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise DataError(
                f"{source} {what} {', '.join(names[:5])}{more}; it does not fit {CONFIG}"
            )
    for name in expected:
        if renamed[name].dtype.kind != "f" or not np.isfinite(renamed[name]).all():
            raise DataError(
                f"{source}: {name} is of {renamed[name].dtype} or has values that are not finite; "
                "fetch it again, not quantised"
            )
    params: dict[str, Any] = {}
    parts: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    for name, (path, _) in expected.items():
        value = np.array(renamed[name], np.float32)
        value = value.T if path[-1] == "kernel" else value
        if path[-2].isdigit():
            parts.setdefault((*path[:-2], path[-1]), {})[int(path[-2])] = value
        else:
            _put(params, path, value)
    for path, thirds in parts.items():
        _put(params, path, np.concatenate([thirds[i] for i in range(3)], axis=-1))
    return params


def _plain(name: str) -> str:
    """Returns a tensor's name in the encoder, without prefixes and in the current spelling."""
    name = _PREFIX.sub("", name, count=1)
    # Models converted from TensorFlow use its names for scale and shift of a normalisation.
    return re.sub(
        r"(?i)(layer_?norm)\.(gamma|beta)$",
        lambda m: f"{m[1]}.{'weight' if m[2].lower() == 'gamma' else 'bias'}",
        name,
    )


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {}) if name else tree
    tree[path[-1]] = value


def _wanted(
    shape: EncoderShape, family: _Family
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Returns the path in our tree and the expected shape of every tensor, by tensor name."""
    d = shape.width
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    rows = {"word": shape.vocabulary, "position": shape.positions, "token_type": shape.types}
    for table, ours in _TABLES.items():
        if rows[table]:
            expected[f"embeddings.{table}_embeddings.weight"] = (("", ours), (rows[table], d))

    def norm(theirs: str, ours: tuple[str, ...]) -> None:
        expected[f"{theirs}.weight"] = ((*ours, "scale"), (d,))
        expected[f"{theirs}.bias"] = ((*ours, "bias"), (d,))

    norm("embeddings.LayerNorm", ("norm_embeddings",))
    for number in range(shape.layers):
        for module, ours in family.modules.items():
            theirs, path = (
                f"{family.layers}.{number}.{module}",
                (f"layer_{number}", *ours.split("/")),
            )
            if ours.startswith("norm"):
                norm(theirs, path)
                continue
            outputs = shape.hidden if ours == "inner" else d
            inputs = shape.hidden if ours == "outer" else d
            expected[f"{theirs}.weight"] = ((*path, "kernel"), (outputs, inputs))
            expected[f"{theirs}.bias"] = ((*path, "bias"), (outputs,))
    return expected


def overlaid(params: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an encoder's parameters overwritten with the loaded ones.

    Layers that the encoder does not have are ignored; bottlenecks keep their parameters.
    """
    return {
        name: loaded.get(name, value)
        if not isinstance(value, Mapping)
        else overlaid(value, loaded.get(name, {}))
        for name, value in params.items()
    }
