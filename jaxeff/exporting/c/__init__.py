"""C99 without dependencies: one header and one source of a recurrent model's step.

`write_c` takes a `jaxeff.programs.Program` and writes floating point, or a
`jaxeff.quantize.IntegerProgram` and writes integers. `jaxeff.exporting.c.host` runs what it wrote
on this machine, `jaxeff.exporting.c.emulator` on an emulated microcontroller.
"""

from jaxeff.exporting.c.front_end import FrontEnd
from jaxeff.exporting.c.write import CSource, write_c

__all__ = ["CSource", "FrontEnd", "write_c"]
