"""The table of the trained models that come with the package, from their reports."""

from __future__ import annotations

import json
from pathlib import Path

from records import table

FOLDER = Path(__file__).resolve().parent.parent / "jaxeff" / "trained"


def models() -> str:
    rows = []
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        test = report["metrics"]["test"]
        accuracy = test.get("accuracy")
        reached = f"{100 * accuracy:.1f} %" if accuracy is not None else f"loss {test['loss']:.3f}"
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1000
        command = report["command"].removeprefix("python -m jaxeff.main ")
        shown = " ".join(p for p in command.split() if not p.startswith("--workdir"))
        parameters = f"{report['cost']['parameters']:,}"
        rows.append([f"`{folder.name}`", reached, parameters, f"{size:.0f}", f"`{shown}`"])
    return table(["name", "test", "parameters", "kB", "made by"], rows)
