"""Sizes of a text encoder that is compiled in a moment."""

SHAPE = {
    "vocabulary": 20,
    "width": 8,
    "layers": 3,
    "heads": 2,
    "hidden": 12,
    "positions": 16,
    "types": 0,
    "dropout": 0.0,
}
