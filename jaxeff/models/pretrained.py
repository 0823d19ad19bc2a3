"""Pretrained text encoders from folders as Hugging Face lays them out.

`jaxeff.data.model_folder` says where the folders are. Tensors are matched by
name, and none may be missing, unknown or of another shape; heads of other tasks are left out.
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

from jaxeff.data.model_folder import CONFIG, WEIGHTS, locate
from jaxeff.errors import DataError
from jaxeff.models.encoder import ACTIVATIONS, EncoderShape

_QKV = "query_key_value"
# Their module in a layer to ours; query, key and value become parts of one.
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
    """How a kind of model names its sizes and tensors.

    Attributes:
      layers: what stands before a layer's number.
      modules: their modules in a layer to ours.
      sizes: fields of `EncoderShape` to their names in the config.
      ignored: pattern of tensors that are no part of the encoder.
    """

    layers: str
    modules: Mapping[str, str]
    sizes: Mapping[str, str]
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
_BERT_FAMILY = _Family("encoder.layer", _BERT, _BERT_SIZES, _IGNORED)
FAMILIES = {
    "bert": _BERT_FAMILY,
    "roberta": _BERT_FAMILY,
    "xlm-roberta": _BERT_FAMILY,
    "distilbert": _Family("transformer.layer", _DISTILBERT, _DISTILBERT_SIZES, _IGNORED),
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder.

    Attributes:
      shape: its sizes.
      params: parameters of an `jaxeff.models.encoder.Encoder` of full depth without cuts.
      folder: where it came from.
    """

    shape: EncoderShape
    params: dict[str, Any]
    folder: Path


def read_shape(folder: Path) -> tuple[EncoderShape, str]:
    """Returns the sizes in a folder's ``config.json`` and the kind of model.

    Raises:
      DataError: the file is missing or damaged, or the model is of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    kind = config.get("model_type", "")
    if kind not in FAMILIES:
        raise DataError(
            f"{path}: model_type {kind!r} is not supported; choose a model of type "
            f"{', '.join(FAMILIES)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise DataError(f"{path}: only absolute positions are supported")
    fields = {}
    for ours, theirs in FAMILIES[kind].sizes.items():
        if theirs not in config:
            raise DataError(f"{path}: has no field '{theirs}'")
        fields[ours] = config[theirs]
    if fields["activation"] not in ACTIVATIONS:
        raise DataError(f"{path}: the activation '{fields['activation']}' is not supported")
    if "roberta" in kind:
        fields["first_position"] = int(config.get("pad_token_id", 1)) + 1
    fields.setdefault("types", 0)
    return EncoderShape(**fields), kind


@functools.lru_cache(maxsize=2)
def load(name: str) -> Pretrained:
    """Loads a pretrained encoder by a name that `jaxeff.data.model_folder.locate` knows.

    Raises:
      DataError: files are missing or damaged, or tensors are missing, unknown or misshapen.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise DataError("pretrained encoders need safetensors; install jaxeff[text]") from error
    folder = locate(name)
    shape, kind = read_shape(folder)
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except Exception as error:  # whatever a damaged or missing file makes the reader raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from None
    return Pretrained(shape, from_tensors(tensors, shape, kind, str(path)), folder)


def from_tensors(
    tensors: Mapping[str, np.ndarray], shape: EncoderShape, kind: str, source: str
) -> dict[str, Any]:
    """Returns the parameters of an `Encoder` from named PyTorch tensors.

    Args:
      tensors: the tensors; matrices are ``[outputs, inputs]``.
      shape: sizes to check against.
      kind: a name in `FAMILIES`.
      source: where they came from, for messages.

    Raises:
      DataError: tensors are missing, unknown or misshapen; the message names them.
    """
    family = FAMILIES[kind]
    prefix = re.compile(r"(bert|roberta|distilbert)\.")
    found = {
        prefix.sub("", name, count=1) if prefix.match(name) else name: value
        for name, value in tensors.items()
    }
    wanted = _wanted(shape, family)
    unknown = [n for n in found if n not in wanted and not re.fullmatch(family.ignored, n)]
    missing = [n for n in wanted if n not in found]
    misshapen = [
        f"{n} is {found[n].shape}, not {size}"
        for n, (_, size) in wanted.items()
        if n in found and found[n].shape != size
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
    params: dict[str, Any] = {}
    parts: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    for name, (path, _) in wanted.items():
        value = np.asarray(found[name], np.float32)
        value = value.T if path[-1] == "kernel" else value
        if path[-2].isdigit():
            parts.setdefault((*path[:-2], path[-1]), {})[int(path[-2])] = value
        else:
            _put(params, path, value)
    for path, thirds in parts.items():
        _put(params, path, np.concatenate([thirds[i] for i in range(3)], axis=-1))
    return params


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {}) if name else tree
    tree[path[-1]] = value


def _wanted(
    shape: EncoderShape, family: _Family
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Returns path in our tree and their shape of every tensor, by their name."""
    d = shape.width
    wanted: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    rows = {"word": shape.vocabulary, "position": shape.positions, "token_type": shape.types}
    for table, ours in _TABLES.items():
        if rows[table]:
            wanted[f"embeddings.{table}_embeddings.weight"] = (("", ours), (rows[table], d))

    def norm(theirs: str, ours: tuple[str, ...]) -> None:
        wanted[f"{theirs}.weight"] = ((*ours, "scale"), (d,))
        wanted[f"{theirs}.bias"] = ((*ours, "bias"), (d,))

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
            wanted[f"{theirs}.weight"] = ((*path, "kernel"), (outputs, inputs))
            wanted[f"{theirs}.bias"] = ((*path, "bias"), (outputs,))
    return wanted


def overlaid(params: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an encoder's parameters with the loaded ones in their places.

    Layers that the encoder does not have are left out; bottlenecks keep what they have.
    """
    return {
        name: loaded.get(name, value)
        if not isinstance(value, Mapping)
        else overlaid(value, loaded.get(name, {}))
        for name, value in params.items()
    }
