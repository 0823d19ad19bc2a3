"""One step of a recurrent model as a short list of operations on vectors.

A `Program` is what integer arithmetic and C code are made from. It comes from the model's own step
(`trace_step`), so that every cell has one, also a user's own. `flattened` lists the operations of
any function, for whoever replaces some of them.
"""

from jaxeff.programs.evaluate import evaluate, initial_carry, values
from jaxeff.programs.flat import FlatFunction, flattened
from jaxeff.programs.program import OPERATIONS, Instruction, Program
from jaxeff.programs.recurrent import trace_step
from jaxeff.programs.trace import trace

__all__ = [
    "OPERATIONS",
    "FlatFunction",
    "Instruction",
    "Program",
    "evaluate",
    "flattened",
    "initial_carry",
    "trace",
    "trace_step",
    "values",
]
