"""A report as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".gif")
_COST_LABELS = {
    "parameters": "parameters",
    "macs_per_example": "multiply-accumulates per example",
    "flops_per_example": "FLOPs per example",
    "uncounted": "bounded or not counted",
    "compile_seconds": "compile time (s)",
}


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns a valid report (see :func:`jaxeff.eval.schema.validate`) as a Markdown document."""
    sections = [
        _heading(report),
        _section("Metrics", _metrics(report["metrics"])),
        _section("Cost", _cost(report["cost"])),
        _section("Training", _facts(report["training"])),
        _section("Parameters", _fence(report["model"].get("parameter_table", ""))),
        _section("Extras", _extras(report["extras"])),
        _section("Not finite", _facts(report.get("non_finite", {}))),
        _section("Artifacts", _artifacts(report["artifacts"])),
        _section("Environment", _facts(report["environment"])),
        _section("Config", _yaml(report["config"])),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _heading(report: Mapping[str, Any]) -> str:
    data, model = report["data"], report["model"]
    sizes = ", ".join(f"{_shown(n)} {split}" for split, n in data.get("sizes", {}).items())
    about = data.get("description", "")
    facts = {
        "status": f"**{report['status']}**",
        "model": f"{model['name']}, {_shown(model['parameters'])} parameters",
        "data": data["name"] + (f" ({sizes})" if sizes else "") + (f": {about}" if about else ""),
        "seed": str(report["seed"]),
        "command": f"`{report['command']}`",
    }
    return "\n".join([f"# {report['name']}", "", *(f"- {k}: {v}" for k, v in facts.items())])


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per metric, one column per split, in their usual order."""
    usual = [split for split in ("train", "validation", "test") if split in metrics]
    splits = usual + sorted(set(metrics) - set(usual))
    names = list(dict.fromkeys(name for split in splits for name in metrics[split]))
    rows = [[name, *(_cell(metrics[split], name) for split in splits)] for name in names]
    return _table(["metric", *splits], rows)


def _cost(cost: Mapping[str, Any]) -> str:
    known = [key for key in _COST_LABELS if cost.get(key) not in (None, [])]
    rows = [[_COST_LABELS[key], _shown(cost[key])] for key in known]
    memory = cost.get("step_memory_bytes", {})
    rows += [[f"memory, {part} (MiB)", _mebibytes(size)] for part, size in memory.items()]
    tables = [_table(["cost", "value"], rows)]
    columns = ["median", "p95", "min", "repeats"]
    latencies = [
        [name.replace("_", " "), *(_cell(times, column) for column in columns)]
        for name, times in sorted(cost.get("latency_ms", {}).items(), key=_batch_size)
    ]
    tables.append(_table(["latency (ms)", *columns], latencies))
    return "\n\n".join(table for table in tables if table)


def _batch_size(item: tuple[str, Any]) -> tuple[int, str]:
    digits = "".join(character for character in item[0] if character.isdigit())
    return int(digits or 0), item[0]


def _mebibytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:,.2f}"


def _extras(extras: Mapping[str, Any]) -> str:
    """Lists of alike records as tables, everything else as YAML."""
    tables = {name: value for name, value in extras.items() if _is_table(value)}
    parts = [_yaml({name: value for name, value in extras.items() if name not in tables})]
    for name, records in tables.items():
        rows = [[_shown(value) for value in record.values()] for record in records]
        header = [column.replace("_", " ") for column in records[0]]
        parts.append(f"### {name}\n\n{_table(header, rows)}")
    return "\n\n".join(part for part in parts if part)


def _is_table(value: Any) -> bool:
    records = value if isinstance(value, list) else []
    return bool(records) and all(
        isinstance(record, Mapping)
        and list(record) == list(records[0])
        and not any(isinstance(field, (Mapping, list)) for field in record.values())
        for record in records
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [[name.replace("_", " "), _shown(value)] for name, value in facts.items()]
    return _table(["field", "value"], rows)


def _artifacts(artifacts: Mapping[str, str]) -> str:
    lines = [f"- [{name}](<{path}>)" for name, path in artifacts.items()]
    images = [
        f"![{name}](<{path}>)" for name, path in artifacts.items() if path.lower().endswith(_IMAGES)
    ]
    return "\n\n".join(["\n".join(lines), *images]) if lines else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table with the first column left, the others right; "" without rows."""
    rows = list(rows)
    if not rows:
        return ""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *cells])


def _cell(mapping: Mapping[str, Any], key: str) -> str:
    """Tells a value that was not finite ("not finite") from one that is not there ("")."""
    return _shown(mapping[key], "not finite") if key in mapping else ""


def _shown(value: Any, null: str = "–") -> str:
    if value is None:
        return null
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1e4 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)


def _fence(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```" if text else ""


def _yaml(mapping: Mapping[str, Any]) -> str:
    return _fence("\n".join(_yaml_lines(mapping, 0)), "yaml")


def _yaml_lines(mapping: Mapping[str, Any], depth: int) -> Iterable[str]:
    """Yields nested mappings as indented YAML; other values as JSON, which YAML contains."""
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield f"{'  ' * depth}{key}:"
            yield from _yaml_lines(value, depth + 1)
        else:
            yield f"{'  ' * depth}{key}: {json.dumps(value, ensure_ascii=False)}"
