"""Compares convolutional networks: hosts as they are, and with what makes them cheaper.

Writes ``results/cnn_accuracy.json``. Lines that are there already and current are kept:

    python benchmarks/cnn_accuracy.py                     # all lines
    python benchmarks/cnn_accuracy.py fashion host        # lines whose name contains the words
    python benchmarks/cnn_accuracy.py --shard=0/2         # every second line; 1/2 beside it
"""

from __future__ import annotations

from recorded import run

# Widths that give the host, or the host of BSConv-S blocks, the parameters or the MACs of the
# network that it is a yardstick for, to 1 % (MACs of BSConv-S: 7 %).
YARDSTICKS = {
    "narrowed": {
        "parameters of global": (9, 18, 38),
        "MACs of global": (7, 15, 31),
        "MACs of interpolated": (10, 19, 39),
        "parameters of output tiles": (11, 24, 46),
        "MACs of output tiles": (13, 26, 54),
    },
    "BSConv-S": {
        "parameters of global": (27, 54, 107),
        "MACs of global": (12, 23, 45),
        "MACs of interpolated": (15, 31, 62),
        "parameters of output tiles": (34, 68, 135),
        "MACs of output tiles": (21, 41, 83),
    },
}
SHARED = {
    "output tiles": "out_tile",
    "output tiles, modulated": "out_tile,modulate",
    "input tiles": "in_tile",
    "BSConv-S": "blueprint_low",
}


def lines() -> dict[str, tuple[str, list[str], str]]:
    """Returns argument, overrides and config file of every line, by ``data, network``."""
    arguments: dict[str, tuple[str, list[str], str]] = {}
    for data in ("digits", "fashion"):
        host = f"{data},model=resnet32"
        arguments[f"{data}, host"] = (host, [], "images")
        arguments[f"{data}, global"] = (host, [], "global_cnn")
        arguments[f"{data}, global 5 steps"] = (f"{host},steps=5", [], "global_cnn")
        arguments[f"{data}, interpolated"] = (host, [], "si_cnn")
        for name, mode in SHARED.items():
            arguments[f"{data}, {name}"] = (f"{host},mode={mode}", [], "shared_conv")
        for kind, sizes in YARDSTICKS.items():
            shared = kind == "BSConv-S"
            base = f"{host},mode={SHARED[kind]}" if shared else host
            for size, widths in sizes.items():
                override = [f"model.widths={list(widths)}"]
                file = "shared_conv" if shared else "images"
                arguments[f"{data}, {kind}, {size}"] = (base, override, file)
    return arguments


if __name__ == "__main__":
    run(lines(), "cnn_accuracy")
