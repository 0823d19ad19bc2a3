"""Sizes, rates and names that nothing can be built of are refused in one sentence."""

import numpy as np
import pytest

from jaxeff import ode
from jaxeff.errors import ConfigError

NAN, INF = float("nan"), float("inf")

CELLS = [
    *((ode.IRNN, {"features": value}) for value in (0, -3, 2.5, 8.0, "8", True, None, NAN, INF)),
    *((ode.IRNN, {"num_inner_steps": value}) for value in (0, -1, 1.5, True, "2")),
    *((ode.IRNN, {"step_size": value}) for value in (0.0, -0.1, NAN, INF, "0.1", True)),
    (ode.IRNN, {"rank": 5}),
    (ode.IRNN, {"rank": -1}),
    (ode.IRNN, {"rank": 1.5}),
    (ode.IRNN, {"init_scale": NAN}),
    (ode.IRNN, {"init_scale": -0.1}),
    (ode.IRNN, {"decay": NAN}),
    (ode.IRNN, {"activation": "tahn"}),
    (ode.IRNN, {"activation": None}),
    (ode.IRNN, {"activation": ["tanh"]}),
    (ode.IRNN, {"step_size_mode": "per_time_step"}),
    (ode.IRNN, {"step_size_mode": "per_time_step", "length": NAN}),
    (ode.IRNN, {"max_step_size": NAN}),
    (ode.LSTM, {"forget_bias": NAN}),
    (ode.FastRNN, {"alpha_init": NAN}),
    (ode.FastGRNN, {"nu_init": INF}),
    (ode.Antisymmetric, {"step_size": NAN}),
    (ode.Antisymmetric, {"diffusion": NAN}),
    (ode.CoRNN, {"step_size": NAN}),
    (ode.CoRNN, {"epsilon": INF}),
    (ode.TARNN, {"gate_bias": NAN}),
    (ode.TARNN, {"max_step_size": INF}),
    (ode.DualODE, {"gate_bias": NAN}),
    (ode.DualODE, {"features": 3}),
]


@pytest.mark.parametrize(("cell", "options"), CELLS)
def test_cells(cell, options):
    with pytest.raises(ConfigError, match=rf"^{cell.__name__}\.\w+"):
        cell(**{"features": 4, **options})


def test_numbers_of_numpy_are_taken():
    cell = ode.IRNN(np.int64(4), num_inner_steps=np.int32(2), step_size=np.float32(0.5))
    assert cell.param_specs(3)["U"].shape == (4, 4)
