"""Recurrent models in integers: 8-bit weights, a state of 16 or 8 bits, sums of 32 bits.

`quantize` makes an `IntegerProgram` of a trained model; `run` simulates it to the bit.
"""

from jaxeff.quantize.calibrate import moments, ranges
from jaxeff.quantize.convert import quantize, to_integer_program
from jaxeff.quantize.formats import QuantizeOptions
from jaxeff.quantize.integer_program import OPERATIONS, IntegerInstruction, IntegerProgram
from jaxeff.quantize.simulate import Errors, errors, run, run_integers, to_integers
from jaxeff.quantize.training import FakeQuantization

__all__ = [
    "OPERATIONS",
    "Errors",
    "FakeQuantization",
    "IntegerInstruction",
    "IntegerProgram",
    "QuantizeOptions",
    "errors",
    "moments",
    "quantize",
    "ranges",
    "run",
    "run_integers",
    "to_integer_program",
    "to_integers",
]
