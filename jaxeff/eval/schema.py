"""The fields of ``report.json`` and the check that a report has them.

The schema is written in a subset of JSON Schema: ``type``, ``enum``, ``minimum``, ``properties``,
``required``, ``items`` and ``additionalProperties`` (False, or the schema of every other field),
plus the type ``"relative path"``. A field without a type may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from jaxeff.registry import closest

SCHEMA_VERSION = 1

Schema = dict[str, Any]


def _object(
    required: tuple[str, ...] = (), others: Schema | bool = False, **fields: Schema
) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": others,
    }


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
_AMOUNT: Schema = {"type": ["number", "null"], "minimum": 0}
_NUMBER: Schema = {"type": ["number", "null"]}
_ANYTHING: Schema = {}

_LATENCY = _object(
    ("median", "p95"), median=_AMOUNT, p95=_AMOUNT, min=_AMOUNT, repeats=_COUNT_OR_NULL
)

REPORT_SCHEMA: Schema = _object(
    (
        "schema_version",
        "name",
        "status",
        "command",
        "seed",
        "data",
        "model",
        "metrics",
        "cost",
        "training",
        "environment",
        "config",
        "artifacts",
        "extras",
    ),
    schema_version={"type": "integer", "enum": [SCHEMA_VERSION]},
    name=_TEXT,
    status={"type": "string", "enum": ["completed", "interrupted"]},
    command=_TEXT,
    seed={"type": "integer"},
    data=_object(
        ("name",),
        name=_TEXT,
        description=_TEXT,
        sizes=_object(others=_COUNT),
    ),
    model=_object(
        ("name", "parameters"),
        name=_TEXT,
        parameters=_COUNT,
        macs_per_example=_COUNT_OR_NULL,
        parameter_table=_TEXT,
    ),
    metrics=_object(others=_object(others=_NUMBER)),
    cost=_object(
        parameters=_COUNT_OR_NULL,
        macs_per_example=_COUNT_OR_NULL,
        flops_per_example=_COUNT_OR_NULL,
        uncounted={"type": "array", "items": _TEXT},
        latency_ms=_object(others=_LATENCY),
        compiled=_object(others=_object(flops=_COUNT_OR_NULL, temp_bytes=_COUNT_OR_NULL)),
        step_memory_bytes=_object(
            temp=_COUNT_OR_NULL,
            argument=_COUNT_OR_NULL,
            output=_COUNT_OR_NULL,
            alias=_COUNT_OR_NULL,
            step=_COUNT_OR_NULL,
        ),
        compile_seconds=_AMOUNT,
    ),
    training=_object(
        ("steps", "seconds"),
        steps=_COUNT,
        epochs=_AMOUNT,
        seconds=_AMOUNT,
        examples_per_second=_AMOUNT,
        waiting_for_data=_AMOUNT,
        best_step=_COUNT_OR_NULL,
        updates=_COUNT,
        weights=_TEXT,
        resumed=_COUNT,
    ),
    environment=_object(("python", "jax"), others=_ANYTHING),
    config=_object(others=_ANYTHING),
    artifacts=_object(others={"type": "relative path"}),
    extras=_object(others=_ANYTHING),
    non_finite=_object(others={"type": "string", "enum": ["nan", "inf", "-inf"]}),
)


def validate(report: Mapping[str, Any]) -> None:
    """Checks that a report has the required fields, no unknown ones, and the right types.

    Args:
      report: a report in plain Python values, as JSON gives them back; integers may stand for
        numbers, numbers must be finite.

    Raises:
      ValueError: naming the first field that is wrong, for example ``report.training.steps``.
    """
    _check(report, REPORT_SCHEMA, "report")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _is_relative_path(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\\" in value:
        return False
    path = PurePosixPath(value)
    return not (path.is_absolute() or PureWindowsPath(value).drive or ".." in path.parts)


_IS: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, Mapping),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": _is_number,
    "null": lambda value: value is None,
    "relative path": _is_relative_path,
}


def _check(value: Any, schema: Schema, where: str) -> None:
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_IS[name](value) for name in types):
        raise ValueError(f"{where} must be {' or '.join(types)}, got {_shown(value)}")
    if "enum" in schema and value not in schema["enum"]:
        choices = ", ".join(map(repr, schema["enum"]))
        raise ValueError(f"{where} must be one of {choices}, got {_shown(value)}")
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        raise ValueError(f"{where} must be at least {schema['minimum']}, got {_shown(value)}")
    if isinstance(value, Mapping) and "properties" in schema:
        _check_fields(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            _check(item, schema["items"], f"{where}[{i}]")


def _check_fields(value: Mapping[str, Any], schema: Schema, where: str) -> None:
    for field in schema["required"]:
        if field not in value:
            raise ValueError(f"{where}.{field} is missing")
    for field, item in value.items():
        if not isinstance(field, str):
            raise ValueError(f"{where} must have fields named by strings, got {_shown(field)}")
        inner = schema["properties"].get(field, schema["additionalProperties"])
        if inner is False:
            raise ValueError(
                f"{where}.{field} is no field of a report{closest(field, schema['properties'])}"
            )
        _check(item, inner, f"{where}.{field}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
