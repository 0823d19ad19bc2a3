"""Training with a pose search for every batch: the affine variational autoencoder.

For each batch, the pose of every image that minimises its loss is searched with fixed weights; then
the weights make one step at these poses with a sampled code. The search uses running batch
statistics and changes neither them nor the weights.

References:
  R. Bidart, A. Wong. Affine Variational Autoencoders: An Efficient Approach for Improving
  Generalization and Robustness to Distribution Shift. 2019. arXiv:1905.05300.
  S. Shekarforoush et al. CryoSPIN: Improving Ab-Initio Cryo-EM Reconstruction with Semi-Amortized
  Pose Inference. 2024. arXiv:2406.10455 (several proposals, refined).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxeff.affine import Found, Problem, Search, Transform, search
from jaxeff.errors import ConfigError
from jaxeff.train.algorithms.base import ALGORITHMS, Algorithm
from jaxeff.train.algorithms.device_share import divisor, step_key
from jaxeff.train.objectives import weighted_means
from jaxeff.train.state import TrainState
from jaxeff.typing import Array, Batch, Carry, Params, PRNGKey

#: More than scores differ by.
_LAST = 1e4


@ALGORITHMS.register("avae")
class AffineVAE(Algorithm):
    """Searches poses, then makes a step of the weights.

    Args:
      *shared: model, objective, optimizer and task, see `Algorithm`. The model is a
        `jaxeff.models.autoencoder.Autoencoder` with poses; the objective is per example a sum of
        convex functions of the outputs, as "elbo" is.
      search: section of the `Search` in training; its random starts are drawn anew for every batch.
      evaluation: section of the search at evaluation, with the same starts for every image.
      cache: whether the pose of a training example is stored as a start of its next search.
        Examples must then repeat unchanged.
      **options: of `Algorithm`.

    Raises:
      ConfigError: a model without poses, a search without a start, or one with more proposals than
        the model has.
    """

    def __init__(
        self,
        *shared: Any,
        search: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        cache: bool = False,
        **options: Any,
    ):
        super().__init__(*shared, **options)
        self.family: Any = getattr(self.model, "family", None)
        if self.family is None:
            raise ConfigError(
                "the model has no poses to search; set config.model.pose, such as "
                "{'name': 'rotation'}, or train it with config.algorithm.name='bptt'"
            )
        self.search = Search.build(search or {"like": "2020"}, "algorithm.search")
        self.evaluation = Search.build(evaluation or {"like": "2020"}, "algorithm.evaluation")
        if self.search.reuse_code:
            raise ConfigError(
                "config.algorithm.search.reuse_code has no effect in training, which encodes again "
                "at the pose found; set it in config.algorithm.evaluation"
            )
        self.cache = self.needs_index = cache
        if cache and not (self.task.num_examples and self.task.num_versions == 1):
            raise ConfigError(
                "cache stores poses of training examples, which must repeat unchanged; set "
                "config.algorithm.cache=False, or config.data.redraw=False"
            )
        self._check_starts("search", self.search, cached=cache)
        self._check_starts("evaluation", self.evaluation, cached=False)

    def _check_starts(self, name: str, settings: Search, cached: bool) -> None:
        heads: int = getattr(self.model, "proposals", 0)
        if settings.proposals > heads:
            raise ConfigError(
                f"config.algorithm.{name}.proposals={settings.proposals} needs as many of the "
                f"model's head, which has {heads}; lower it, or set config.model.proposals"
            )
        if not (settings.starts or settings.proposals or cached):
            raise ConfigError(
                f"config.algorithm.{name} has no pose to start from; set its starts, or its "
                "proposals and config.model.proposals"
            )

    def init(self, params: Params) -> dict[str, Any]:
        """See `Algorithm.init`; the cache begins at the identity."""
        state = super().init(params)
        if self.cache:
            poses = jnp.tile(self.family.identity(), (self.task.num_examples, 1))
            state["poses"] = poses
        return state

    def problem(self, variables: Any) -> Problem:
        """Returns the loss of poses under fixed weights and statistics."""

        def code(data: Any, pose: Array) -> Any:
            mean, log_variance = self._apply(variables, data["inputs"], pose, method="encode")
            return self._apply(variables, mean, method="draw"), mean, log_variance

        def place(code: Any, pose: Array) -> Any:
            drawn, mean, log_variance = code
            placed = self._apply(variables, drawn, pose, method="place")
            return self.model.outputs(placed, mean, log_variance)

        def criterion(outputs: Any, data: Any) -> Array:
            return self.objective(outputs, data)["loss"]

        return Problem(code, place, criterion, self.family.valid)

    def _apply(self, variables: Any, *args: Any, method: str) -> Any:
        result: Any = self.model.apply(variables, *args, method=method)
        return result

    def starts(self, variables: Any, inputs: Array, settings: Search, key: PRNGKey | None) -> Array:
        """Returns ``[batch, starts, size]``: drawn or spread ones, and the head's proposals."""
        # Those of the evaluation are constants of its program.
        with jax.ensure_compile_time_eval() if key is None else contextlib.nullcontext():
            if settings.spread:
                starts = self.family.spread(settings.starts)
            else:
                start_key = jax.random.key(0) if key is None else key
                starts = self.family.starts(start_key, settings.starts)
        tiled = jnp.broadcast_to(starts, (inputs.shape[0], *starts.shape))
        if not settings.proposals:
            return tiled
        proposed, scores = self._apply(variables, inputs, method="propose")
        if settings.apart:
            proposed = self._apart(proposed, scores, settings)
        return jnp.concatenate([tiled, proposed[:, : settings.proposals]], 1)

    def _apart(self, proposed: Array, scores: Array, settings: Search) -> Array:
        """Returns an image's likeliest proposals, those near a likelier one last."""
        of_rows, of_columns = (jnp.expand_dims(proposed, axis) for axis in (2, 1))
        far = distance(self.family.transform(of_rows), self.family.transform(of_columns))
        chosen = []
        for _ in range(settings.proposals):
            best = jnp.argmax(scores, 1)[:, None]
            chosen.append(jnp.take_along_axis(proposed, best[..., None], 1))
            near = jnp.take_along_axis(far, best[..., None], 1)[:, 0] < settings.apart
            # Near ones come after all others, and what was chosen is not chosen again.
            scores = jnp.where(near, scores - _LAST, scores)
            scores = jnp.where(jnp.arange(scores.shape[1]) == best, -jnp.inf, scores)
        return jnp.concatenate(chosen, 1)

    def find(self, variables: Any, inputs: Array, settings: Search | None = None) -> Array:
        """Returns the poses ``[batch, size]`` of images, by the search of the evaluation."""
        return self.searched(variables, inputs, settings).pose

    def searched(self, variables: Any, inputs: Array, settings: Search | None = None) -> Found:
        """Returns the poses of images with their losses, by the search of the evaluation."""
        settings = settings or self.evaluation
        starts = self.starts(variables, inputs, settings, None)
        return search(self.problem(variables), {"inputs": inputs}, starts, settings)

    def forward(
        self,
        variables: Any,
        batch: Batch,
        carry: Carry = (),
        *,
        train: bool,
        key: PRNGKey | None = None,
    ) -> tuple[Any, Carry, Any]:
        """Applies the model at the poses that a search finds; see `Algorithm.forward`."""
        found = self.searched(variables, batch["inputs"])
        if self.evaluation.reuse_code and not train:
            return self.problem(variables).place(found.code, found.pose), (), {}
        return *self._at(variables, batch["inputs"], found.pose, train=train, key=key), {}

    def _at(
        self, variables: Any, inputs: Array, pose: Array, *, train: bool, key: PRNGKey | None
    ) -> tuple[Any, Any]:
        if not train:
            return self.model.apply(variables, inputs, pose, train=False), ()
        collections = [name for name in variables if name != "params"]
        rngs: Any = {"dropout": key}
        return self.model.apply(variables, inputs, pose, train=True, rngs=rngs, mutable=collections)

    def update(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Searches the batch's poses and makes one step at them; see `Algorithm.update`."""
        inputs, weight = batch["inputs"], batch["weight"]
        search_key, code_key = jax.random.split(step_key(state, axis_name))
        variables = {"params": state.params, **state.model_state}
        starts = self.starts(variables, inputs, self.search, search_key)
        if self.cache:
            known = state.algo_state["poses"][batch["index"]]
            starts = jnp.concatenate([starts, known[:, None]], 1)
        result = search(self.problem(variables), {"inputs": inputs}, starts, self.search)
        pose = jax.lax.stop_gradient(result.pose)
        total = divisor(weight, axis_name)

        def loss_fn(params: Params) -> tuple[Array, tuple[dict[str, Array], Any]]:
            variables = {"params": params, **state.model_state}
            outputs, collected = self._at(variables, inputs, pose, train=True, key=code_key)
            values = self.objective(outputs, batch)
            loss = values["loss"]
            if self.model.proposals:
                variables = {"params": params, **collected}
                values["head"], collected = self._head_loss(variables, inputs, pose)
                loss = loss + values["head"]
            return jnp.sum(loss * weight) / total, (values, collected)

        (_, (values, collected)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        new = self.apply_gradients(state, grads, collected, axis_name)
        algo_state = self._remember(new.algo_state, batch, pose, axis_name)
        new = new.replace(step=state.step + 1, algo_state=algo_state)
        return new, weighted_means(values, weight, axis_name)

    def _remember(
        self, algo_state: dict[str, Any], batch: Batch, pose: Array, axis_name: str | None
    ) -> dict[str, Any]:
        if not self.cache:
            return algo_state
        index = batch["index"]
        if axis_name is not None:  # the cache is replicated
            index, pose = jax.lax.all_gather((index, pose), axis_name, tiled=True)
        return {**algo_state, "poses": algo_state["poses"].at[index].set(pose)}

    def _head_loss(self, variables: Any, inputs: Array, pose: Array) -> tuple[Array, Any]:
        """Returns the nearest proposal's distance from the pose plus the log-loss of its score.

        Beside these losses ``[batch]`` it returns the collections after the head's pass.
        """
        collections = [name for name in variables if name != "params"]
        (proposed, scores), collected = self.model.apply(
            variables, inputs, train=True, method="propose", mutable=collections
        )
        far = distance(self.family.transform(proposed), self.family.transform(pose[:, None]))
        nearest = jnp.argmin(far, 1)
        log_loss = optax.softmax_cross_entropy_with_integer_labels(scores, nearest)
        return jnp.min(far, 1) + log_loss, collected


def distance(one: Transform, other: Transform) -> Array:
    """Returns the squared distance of transforms, of matrices and shifts together."""
    matrices = jnp.square(one.matrix - other.matrix).sum((-2, -1))
    return matrices + jnp.square(one.shift - other.shift).sum(-1)
