"""Training of a network with exits: the objectives of all exits at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.models.early_exit import EarlyExitNet
from jaxeff.train.algorithms.base import ALGORITHMS
from jaxeff.train.algorithms.bptt import BPTT
from jaxeff.typing import Array, Batch, Carry, PRNGKey


@ALGORITHMS.register("early_exits")
class EarlyExits(BPTT):
    """`BPTT` of a weighted mean of the losses of all exits; evaluation is at the last.

    Args:
      exit_weights: of every exit and of the final head; () for equal weights.
      **options: of `BPTT`.

    Raises:
      ConfigError: a model without exits, or a wrong number of weights.
    """

    def __init__(self, *, exit_weights: Sequence[float] = (), **options: Any):
        super().__init__(**options)
        model = self.model
        if not isinstance(model, EarlyExitNet):
            raise ConfigError("algorithm 'early_exits' needs config.model.name='early_exit'")
        count = len(model.exits) + 1
        self.exit_weights = tuple(exit_weights) or (1.0,) * count
        if len(self.exit_weights) != count or min(self.exit_weights) < 0:
            raise ConfigError(f"exit_weights must be {count} numbers, not {self.exit_weights}")
        if not sum(self.exit_weights):
            raise ConfigError("exit_weights must not all be 0")
        self._of_one, self.objective = self.objective, self._of_all

    def _of_all(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        if outputs.ndim == 2:
            return self._of_one(outputs, batch)
        of_exits = [self._of_one(each, batch) for each in outputs]
        losses = jnp.stack([values["loss"] for values in of_exits])
        weights = jnp.asarray(self.exit_weights, losses.dtype) / sum(self.exit_weights)
        return {**of_exits[-1], "loss": weights @ losses}

    def forward(
        self,
        variables: Any,
        batch: Batch,
        carry: Carry = (),
        *,
        train: bool,
        key: PRNGKey | None = None,
    ) -> tuple[Array, Carry, Any]:
        """See `Algorithm.forward`; in training the outputs are those of all exits."""
        if not train:
            return super().forward(variables, batch, carry, train=train, key=key)
        rngs: Any = {"dropout": key}
        collections = [name for name in variables if name != "params"]
        outputs, collected = self.model.apply(
            variables,
            batch["inputs"],
            train=True,
            rngs=rngs,
            mutable=collections,
            method="every_exit",
        )
        return outputs, (), collected
