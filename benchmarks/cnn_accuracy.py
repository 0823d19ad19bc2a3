"""Compares convolutional networks: hosts as they are, and with what makes them cheaper.

Writes ``results/cnn_accuracy.json``. Lines that are there already with the same command are kept:

    python benchmarks/cnn_accuracy.py                     # all lines
    python benchmarks/cnn_accuracy.py fashion host        # lines whose name contains the words
    python benchmarks/cnn_accuracy.py --shard=0/2         # every second line; 1/2 beside it
"""

from __future__ import annotations

from recorded import run

# Widths of the host made narrower, at the parameters of the network that it is a yardstick for.
NARROWED = {"as global": (9, 18, 38), "as shared": (11, 24, 46)}
SHARED = {
    "output tiles": "out_tile",
    "output tiles, modulated": "out_tile,modulate",
    "input tiles": "in_tile",
    "BSConv-S": "blueprint_low",
}


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and config file of every line, by ``data, network``."""
    found: dict[str, tuple[str, list[str], str]] = {}
    for data in ("digits", "fashion"):
        host = f"{data},model=resnet32"
        found[f"{data}, host"] = (host, [], "images")
        found[f"{data}, global"] = (host, [], "global_cnn")
        found[f"{data}, global 5 steps"] = (f"{host},steps=5", [], "global_cnn")
        found[f"{data}, interpolated"] = (host, [], "si_cnn")
        for name, mode in SHARED.items():
            found[f"{data}, {name}"] = (f"{host},mode={mode}", [], "shared_conv")
        for name, widths in NARROWED.items():
            override = [f"model.widths={list(widths)}"]
            found[f"{data}, narrowed {name}"] = (host, override, "images")
    return found


if __name__ == "__main__":
    run(lines(), "cnn_accuracy")
