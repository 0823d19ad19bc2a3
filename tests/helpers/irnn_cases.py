"""Parameters and cells with which the incremental RNN is tested."""

import numpy as np

from jaxeff.ode import IRNN


def drawn(features=32, inputs=5, scale=0.5, seed=0, bias=0.0):
    """U and W as in setting A, a bias of the given scale, a state and an input."""
    rng = np.random.default_rng(seed)
    params = {
        "U": rng.normal(size=(features, features)) * scale / np.sqrt(features),
        "W": rng.normal(size=(inputs, features)),
        "b": bias * rng.normal(size=features),
    }
    return params, 0.5 * rng.normal(size=features), rng.normal(size=inputs)


def raw_cell(features, num_inner_steps, **options):
    """A cell whose parameter step_size is eta itself."""
    return IRNN(features, num_inner_steps=num_inner_steps, step_size_param="raw", **options)
