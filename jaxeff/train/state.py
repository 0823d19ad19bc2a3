"""The training state: everything on the devices that changes with every step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from jaxeff.typing import Carry, Params, PRNGKey


class TrainState(flax.struct.PyTreeNode):
    """State of a training run, replicated over the devices.

    Attributes:
      step: batches trained on so far, an integer scalar.
      params: the model's parameters.
      opt_state: the optimiser's state.
      algo_state: the algorithm's state, for example multipliers or a frozen teacher.
      model_state: the model's other variable collections, for example batch statistics.
      key: random key of the run; a step folds its number into it.
      carry: recurrent state ``[batch, ...]`` for the next batch, for data whose batches are
        consecutive windows of long sequences; else ().
    """

    step: jax.Array
    params: Params
    opt_state: Any
    algo_state: Any
    model_state: Any
    key: PRNGKey
    carry: Carry = ()
