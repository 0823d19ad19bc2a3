"""Pictures of autoencoders with poses: grids of images, voxels, angles and losses by angle."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxeff.affine.orientation import OrientationModes
from jaxeff.affine.poses import euler_matrix
from jaxeff.affine.resampling import Transform, resample
from jaxeff.eval.plots import _COLORS, _FAINT, _INK, _figure, _plain, _save

#: From where voxels are looked at: a little from above and from the side.
_VIEW = (0.5, 0.6, 0.0)
_LIGHT = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])


def rendered(voxels: np.ndarray) -> np.ndarray:
    """Returns shaded views ``[batch, rows, columns]`` of voxels ``[batch, z, y, x, 1]`` in [0, 1].

    The voxels are turned, and seen along z through what is in front of them; light and dark show
    how the surface faces the light.
    """
    matrix = np.tile(euler_matrix(np.asarray(_VIEW, np.float32), np), (len(voxels), 1, 1))
    turned = resample(voxels, Transform(matrix, np.zeros((len(voxels), 3), np.float32)), np)[..., 0]
    density = np.clip(2 * turned - 0.5, 0, 1)
    through = np.cumprod(1 - density, axis=1)
    seen = density * np.concatenate([np.ones_like(through[:, :1]), through[:, :-1]], 1)
    slopes = np.stack(np.gradient(turned, axis=(3, 2, 1)), -1)  # (x, y, z)
    normals = -slopes / np.maximum(np.linalg.norm(slopes, axis=-1, keepdims=True), 1e-6)
    shade = 0.55 + 0.45 * (normals @ _LIGHT)
    views: np.ndarray = (seen * shade).sum(1)
    return views


def image_grid(
    rows: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Draws rows of images, each with its name on the left.

    Args:
      rows: ``[columns, rows, columns, 1]`` images, or voxels with one axis more, in [0, 1]; pixels
        that are NaN are left out.
      path: the PNG file to write.
      columns: a name above each column, such as the value of a code; none if empty.
      title: heading of the picture.

    Returns:
      ``path``.
    """
    count = max(len(images) for images in rows.values())
    figure = _figure(1.6 + 0.75 * count, 0.5 + 0.8 * len(rows))
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.02)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        flat = rendered(np.nan_to_num(images)) if images.ndim == 5 else images[..., 0]
        for number, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color(_FAINT)
            if number < len(flat):
                axis.set_facecolor(_FAINT)  # shows where a pixel is left out
                axis.imshow(flat[number], cmap="gray_r", vmin=0, vmax=1)
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9.5, "color": _INK}
        line[0].set_ylabel(name, **label)
    for axis, name in zip(axes[0], columns, strict=False):
        axis.set_title(name, fontsize=9.5, color=_INK)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    return _save(figure, path)


def angle_histograms(
    angles: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    modes: Mapping[str, OrientationModes] | None = None,
    title: str | None = None,
    conclusion: str = "",
) -> Path:
    """Draws the distribution of angles in (-pi, pi], a circle per name.

    Args:
      angles: name to angles in radians.
      path: the PNG file to write.
      modes: directions to mark, and their concentration, by name.
      title: heading of the picture.
      conclusion: a line below the circles.

    Returns:
      ``path``.
    """
    columns = min(5, len(angles))
    lines = -(-len(angles) // columns)
    figure = _figure(1.8 * columns, 2.3 * lines + 0.6)
    edges = np.linspace(-np.pi, np.pi, 37)
    axes = figure.subplots(lines, columns, squeeze=False, subplot_kw={"projection": "polar"})
    for axis in axes.flat[len(angles) :]:
        axis.set_visible(False)
    for axis, (name, values) in zip(axes.flat, angles.items(), strict=False):
        heights, _ = np.histogram(values, edges)
        axis.bar(edges[:-1], heights, np.diff(edges), align="edge", color=_COLORS[0])
        label = name
        if modes:
            label += f"\nconcentration {modes[name].concentration:.2f}"
            ends = [[direction] * 2 for direction in modes[name].directions]
            for end in ends:
                axis.plot(end, [0, heights.max()], color=_COLORS[1], linewidth=1.6)
        axis.set_title(label, fontsize=9.5, color=_INK)
        axis.set_yticks([])
        axis.set_xticks(np.pi / 2 * np.arange(4), ["0°", "90°", "180°", "-90°"])
        axis.tick_params(colors=_INK, labelsize=8.5, pad=1)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    if conclusion:
        figure.supxlabel(textwrap.fill(conclusion, 90), fontsize=10, color=_INK)
    return _save(figure, path)


def loss_by_angle(
    degrees: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> Path:
    """Draws losses against the angle by which the images were turned.

    Args:
      degrees: the angles.
      losses: of each name, one per angle.
      path: the PNG file to write.
      title: heading of the picture.

    Returns:
      ``path``.
    """
    figure = _figure(6.0, 3.6)
    axis = figure.subplots()
    for color, (name, values) in zip(_COLORS, losses.items(), strict=False):
        axis.plot(degrees, values, color=color, marker="o", markersize=4, label=name)
    axis.set_ylim(0, 1.25 * max(max(values) for values in losses.values()))  # below the legend
    axis.set_xticks(range(0, int(max(degrees)) + 1, 60))
    axis.set_xlabel("rotation of the image, degrees", fontsize=11, color=_INK)
    axis.set_ylabel("loss per image", fontsize=11, color=_INK)
    _plain(axis)
    axis.legend(frameon=False, fontsize=9.5, labelcolor=_INK)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    return _save(figure, path)
