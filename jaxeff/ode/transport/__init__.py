r"""Advection, diffusion and sources on a grid: the solvers behind the Global layer.

Every channel c of a feature map follows its own scalar equation; channels do not mix:

.. math::
   \partial_t h + \partial_x (u h) + \partial_y (v h)
   = D_x \partial_{xx} h + D_y \partial_{yy} h + f

x is the axis of the rows and y that of the columns of arrays ``[..., rows, columns, channels]``.
Three solvers:

* `leapfrog`: central differences with DuFort-Frankel diffusion, the published scheme;
* `spectral`: exact in time for coefficients that are constant over the grid;
* `line_implicit`: a tridiagonal solve per row and column, conservative and stable for any step.

All compute in at least single precision, which keeps sums over steps accurate, and return the type
of the field.

Reference:
  Kag, Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022; discretisation
  as in the authors' code. `spectral` and `line_implicit` are this package's own.
"""

from jaxeff.ode.transport.equation import BOUNDARIES, Coefficients
from jaxeff.ode.transport.leapfrog import STARTS, leapfrog
from jaxeff.ode.transport.line_implicit import line_implicit
from jaxeff.ode.transport.rectified import Rectified
from jaxeff.ode.transport.spectral import spectral
from jaxeff.ode.transport.stability import growth, stability_number
from jaxeff.ode.transport.tridiagonal import solve_tridiagonal

__all__ = [
    "BOUNDARIES",
    "STARTS",
    "Coefficients",
    "Rectified",
    "growth",
    "leapfrog",
    "line_implicit",
    "solve_tridiagonal",
    "spectral",
    "stability_number",
]
