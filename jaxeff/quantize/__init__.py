"""Models in integers: 8-bit weights, activations of 16 or 8 bits, sums of 32 bits.

`quantize` makes an `IntegerProgram` of a trained recurrent model; `run` simulates it to the bit.
`quantize_network` makes an `IntegerNetwork` of a convolutional or dense one.
"""

from jaxeff.quantize.calibrate import moments, ranges
from jaxeff.quantize.convert import quantize, to_integer_program
from jaxeff.quantize.convert_network import quantize_network, to_integer_network
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.integer_program import OPERATIONS, IntegerInstruction, IntegerProgram
from jaxeff.quantize.network import IntegerNetwork, ProductErrors
from jaxeff.quantize.products import Grid, Product
from jaxeff.quantize.simulate import Errors, errors, run, run_integers, to_integers
from jaxeff.quantize.training import FakeQuantization

__all__ = [
    "OPERATIONS",
    "Errors",
    "FakeQuantization",
    "Grid",
    "IntegerInstruction",
    "IntegerNetwork",
    "IntegerProgram",
    "Product",
    "ProductErrors",
    "QuantizeOptions",
    "errors",
    "moments",
    "quantize",
    "quantize_network",
    "ranges",
    "run",
    "run_integers",
    "to_integer_network",
    "to_integer_program",
    "to_integers",
]
