"""Incremental RNN on handwritten digits, read row by row (8 steps of 8 features).

Kag, Zhang, Saligrama, "RNNs Incrementally Evolving on an Equilibrium Manifold", ICLR 2020.

    python -m jaxeff.main --config=configs/irnn.py
    python -m jaxeff.main --config=configs/irnn.py:quick     # a smaller run

The data is scikit-learn's, so no network is needed. The other data sets and views of
`jaxeff.data` fit too, for example 784 steps of Fashion-MNIST:

    python -m jaxeff.main --config=configs/irnn.py --config.data.name=fashion_mnist \
        --config.data.view=pixels
"""

from jaxeff.train.defaults import base_config


def get_config(arg: str = ""):
    """Returns the config; ``arg`` is "" or "quick"."""
    config = base_config()
    config.name = "irnn"
    config.data.name = "digits"
    config.data.view = "rows"
    config.model = {
        "name": "sequence",
        "cell": {
            "name": "irnn",
            "features": 64,
            "num_inner_steps": 1,
            "activation": "tanh",
            "decay": 1.0,
            "step_size": 0.1,
            "step_size_mode": "per_inner_step",
            "rank": 0,
            "solver": "euler",
        },
        "num_layers": 1,
        "dropout": 0.0,
    }
    config.optim.learning_rate = 3e-3
    config.optim.clip_norm = 1.0
    config.train.batch_size = 64
    config.train.num_steps = 200 if arg == "quick" else 3000
    config.train.log_every = 50
    config.train.eval_every = 100
    config.checkpoint.every = 500
    if arg not in ("", "quick"):
        raise ValueError(f"configs/irnn.py takes the argument 'quick' or none, not {arg!r}")
    return config
