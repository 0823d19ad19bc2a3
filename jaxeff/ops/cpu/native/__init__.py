"""CPU forms in C++, called through XLA's foreign-function interface.

They are compiled when they are first asked for, by the machine's compiler (``library.py``). Where
there is none, `is_computable` is false and the CPU forms in plain JAX are taken.
"""

from jaxeff.ops.cpu.native import anchors, convolution, fields, normalisation, products, transport
from jaxeff.ops.cpu.native.library import call, call_in_place, is_available, is_computable, threads

__all__ = [
    "anchors",
    "call",
    "call_in_place",
    "convolution",
    "fields",
    "is_available",
    "is_computable",
    "normalisation",
    "products",
    "threads",
    "transport",
]
