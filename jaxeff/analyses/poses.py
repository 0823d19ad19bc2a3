"""What autoencoders make of images and of their poses: pictures, angles, and losses by angle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.affine.losses import resampling_floor
from jaxeff.affine.orientation import OrientationModes, circular_variance, conclusion
from jaxeff.affine.poses import angle_of, rotation_matrix
from jaxeff.affine.resampling import Transform, reads_inside, resample
from jaxeff.analyses.base import ANALYSES, Findings, TrainingResult
from jaxeff.errors import ConfigError
from jaxeff.eval import pose_plots

_CHUNK = 32


class AutoencoderPredictor:
    """Applies a trained autoencoder to images, on one device.

    Args:
      trained: the autoencoder, with poses or without.

    Raises:
      ConfigError: another kind of model.
    """

    def __init__(self, trained: TrainingResult):
        if trained.dataset.task != "reconstruction":
            raise ConfigError(
                "this analysis looks at autoencoders, but config.data.name="
                f"'{trained.dataset.name}' is for {trained.dataset.task}; leave it out"
            )
        self.variables = trained.local_variables()
        self.model: Any = trained.model
        self.algorithm = trained.algorithm
        self.family = self.model.family
        self._find: Callable[..., Any] = jax.jit(self._found)
        self._look: Callable[..., Any] = jax.jit(self._looked)

    def _found(self, variables: Any, inputs: Any) -> Any:
        if hasattr(self.algorithm, "find"):
            return self.algorithm.find(variables, inputs)
        if self.model.proposals:
            proposed: Any = self.model.apply(variables, inputs, method="propose")
            return proposed[0][:, 0]
        return None

    def _looked(self, variables: Any, inputs: Any, pose: Any) -> dict[str, Any]:
        outputs = self.model.apply(variables, inputs, pose)
        loss = self.algorithm.objective(outputs, {"inputs": inputs})["loss"]
        seen = {"reconstruction": outputs.reconstruction, "mean": outputs.mean, "loss": loss}
        if pose is not None:
            seen["canonical"] = resample(inputs, self.family.transform(pose))
            seen |= self.family.transform(pose)._asdict()
        return seen

    def __call__(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns reconstructions, codes, losses and poses of images ``[batch, ...]``."""
        parts = []
        for start in range(0, len(inputs), _CHUNK):
            part = inputs[start : start + _CHUNK]
            real = len(part)
            part = np.pad(part, ((0, _CHUNK - real), *((0, 0),) * (part.ndim - 1)))
            outputs = self._look(self.variables, part, self._find(self.variables, part))
            parts.append({name: np.asarray(value)[:real] for name, value in outputs.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def decoded(self, codes: np.ndarray) -> np.ndarray:
        """Returns the canonical images of codes ``[batch, latents]``."""

        def paint(variables: Any, codes: Any) -> Any:
            drawn = self.model.apply(variables, codes, method="draw")
            return self.model.apply(variables, drawn, None, method="place")

        return np.asarray(jax.jit(paint)(self.variables, codes))


def _first(trained: TrainingResult, count: int, split: str = "test") -> dict[str, np.ndarray]:
    examples = trained.dataset.splits[split]
    return examples.take(np.arange(min(count, len(examples))))


@ANALYSES.register("reconstructions")
@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """Draws test images, their canonical poses and reconstructions, and traversals of the code.

    Pixels of canonical images that the loss does not see at the pose of the image, such as the
    corners of a turned square, are left out; of traversals those that it does not see at half of
    the poses.

    Attributes:
      images: how many.
      codes: latent numbers to traverse, each from -2 to 2 about the first image's code: those whose
        means have the largest variance over the examples, largest first.
      examples: test images over which this variance is taken.
    """

    images: int = 10
    codes: int = 6
    examples: int = 64

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """See `jaxeff.analyses.Analysis`."""
        predict, name = AutoencoderPredictor(trained), trained.config.name
        inputs = _first(trained, max(self.images, self.examples))["inputs"]
        seen = predict(inputs)
        shown = {key: values[: self.images] for key, values in seen.items()}
        inputs = inputs[: self.images]
        rows, constrained = {"input": inputs}, np.ones((1, *inputs.shape[1:-1]), bool)
        if "canonical" in seen:
            transform = Transform(seen["matrix"], seen["shift"])
            constrained = reads_inside(inputs.shape[1:-1], transform)
            decoded = predict.decoded(shown["mean"])
            rows["canonical pose"] = _only(shown["canonical"], constrained[: self.images])
            rows["canonical\nreconstruction"] = _only(decoded, constrained[: self.images])
        rows["reconstruction"] = shown["reconstruction"]
        pose_plots.image_grid(rows, workdir / "reconstructions.png", title=name)
        steps = np.linspace(-2, 2, 9, dtype=np.float32)
        variances = seen["mean"].var(0)
        most = constrained.mean(0, keepdims=True) >= 0.5
        lines = {}
        for number in np.argsort(-variances)[: self.codes]:
            code = np.tile(seen["mean"][:1], (len(steps), 1))
            code[:, number] = steps
            label = f"z{number}, variance {variances[number]:.2f}"
            lines[label] = _only(predict.decoded(code), most)
        pose_plots.image_grid(
            lines,
            workdir / "traversals.png",
            columns=[f"{step:g}" for step in steps],
            title=f"{name}: one number of the code at a time",
        )
        return Findings(
            {
                "loss_of_pictured": shown["loss"].tolist(),
                "code_variance": {f"z{i}": float(v) for i, v in enumerate(variances)},
            },
            {"reconstructions": "reconstructions.png", "traversals": "traversals.png"},
        )


def _only(images: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Returns images with NaN at the pixels that are not shown, ``[batch or 1, *shape]``."""
    return np.where(shown[..., None], images, np.nan)


@ANALYSES.register("recovered_angles")
@dataclasses.dataclass(frozen=True)
class RecoveredAngles:
    """Compares the angles that the model found with those of the data, class by class.

    Their sum is the orientation in which the model keeps a class: it is the same for all its images
    if shape and orientation have come apart.

    Attributes:
      images: test images to look at.
    """

    images: int = 500

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """See `jaxeff.analyses.Analysis`."""
        predict = AutoencoderPredictor(trained)
        if predict.family is None or predict.family.dimensions != 2:
            raise ConfigError(
                "the analysis 'recovered_angles' needs a model with poses in the plane; leave it "
                "out"
            )
        batch = _first(trained, self.images)
        seen = predict(batch["inputs"])
        drawn = batch["pose"][:, :4].reshape(-1, 2, 2)
        kept = np.asarray(angle_of(jnp.asarray(drawn @ seen["matrix"])))
        angles = np.asarray(angle_of(jnp.asarray(seen["matrix"])))
        names = trained.dataset.class_names or tuple(map(str, range(10)))
        by_class = {
            names[label]: kept[batch["labels"] == label] for label in np.unique(batch["labels"])
        }
        title = "Canonical orientation of each class: angle of the data plus angle found"
        modes = {name: OrientationModes.of(of_class) for name, of_class in by_class.items()}
        pose_plots.angle_histograms(
            by_class,
            workdir / "orientations.png",
            modes=modes,
            title=title,
            conclusion=conclusion(modes),
        )
        pose_plots.angle_histograms({"all": angles}, workdir / "angles.png", title="Angles found")
        return Findings(
            {
                "circular_variance": {n: circular_variance(a) for n, a in by_class.items()},
                # Of two opposite orientations the doubled angle is one.
                "circular_variance_of_axis": {
                    n: circular_variance(2 * a) for n, a in by_class.items()
                },
                "orientations": {
                    n: {
                        "degrees": [round(float(np.rad2deg(d)), 1) for d in of.directions],
                        "concentration": of.concentration,
                    }
                    for n, of in modes.items()
                },
                "conclusion": conclusion(modes),
                "circular_variance_of_data": circular_variance(
                    np.asarray(angle_of(jnp.asarray(drawn)))
                ),
            },
            {"orientations": "orientations.png", "angles": "angles.png"},
        )


@ANALYSES.register("loss_by_angle")
@dataclasses.dataclass(frozen=True)
class LossByAngle:
    """Measures the loss of test images turned by fixed angles, and what no such model can avoid.

    Attributes:
      images: test images to turn.
      step: degrees from one angle to the next.
    """

    images: int = 128
    step: int = 30

    def __call__(self, trained: TrainingResult, workdir: Path) -> Findings:
        """See `jaxeff.analyses.Analysis`."""
        predict = AutoencoderPredictor(trained)
        split = trained.dataset.splits["test"]
        if len(trained.dataset.input_shape) != 3 or not hasattr(split, "posed"):
            raise ConfigError(
                "the analysis 'loss_by_angle' needs images that can be turned, such as data "
                "'posed_images'; leave it out"
            )
        indices = np.arange(min(self.images, len(split)))
        degrees = list(range(0, 360, self.step))
        losses, unavoidable, twice = [], [], []
        for angle in degrees:
            matrix = rotation_matrix(np.deg2rad(np.full(len(indices), angle)), np)
            turn = Transform(matrix.astype(np.float32), np.zeros((len(indices), 2), np.float32))
            inputs = split.posed(indices, turn)
            seen = predict(inputs)
            losses.append(float(seen["loss"].mean()))
            floor = predict.algorithm.objective.floor(jnp.asarray(inputs))
            unavoidable.append(float(floor.mean()))
            if "matrix" in seen:
                transform = Transform(*(jnp.asarray(seen[part]) for part in ("matrix", "shift")))
                twice.append(float(resampling_floor(jnp.asarray(inputs), transform).mean()))
        curves = {"loss": losses}
        if twice:
            curves["part due to resampling twice"] = twice
        pose_plots.loss_by_angle(
            degrees, curves, workdir / "loss_by_angle.png", title=trained.config.name
        )
        reducible = [loss - floor for loss, floor in zip(losses, unavoidable, strict=True)]
        return Findings(
            {
                "degrees": degrees,
                "loss": losses,
                "reducible_loss": reducible,
                "output_floor": unavoidable,
                "resampling_floor": twice,
                "mean_loss": float(np.mean(losses)),
            },
            {"loss_by_angle": "loss_by_angle.png"},
        )
