"""From triangle meshes to voxels, by rules that are fixed here, since those of libraries change.

A mesh is centred by its bounding box and scaled so that the longest side fills the grid. Arrays of
voxels have the axes (z, y, x).
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxeff.errors import ConfigError, DataError
from jaxeff.files.reading import read_text

FILLS = ("surface", "solid")
#: Number of the rules below, raised whenever they change: voxels kept by older ones are made anew.
RULE = 1
#: Shrinks towards the centre, so that faces on the border between voxels belong to the inner ones.
_SHRINK = 1 - 1e-4
#: Moves rays off the middle of the voxels, which edges of meshes often cross exactly.
_OFFSET = np.array([3.137e-4, 7.219e-4])
_BLOCK = 2048


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads vertices ``[vertices, 3]`` and triangles ``[triangles, 3]`` of a mesh file.

    Raises:
      DataError: trimesh is not installed, or the file holds no mesh.
    """
    try:
        import trimesh
    except ImportError as error:
        raise DataError("reading meshes needs trimesh; install jaxeff[meshes]") from error
    try:
        source: Any = (
            io.BytesIO(_off(path).encode()) if path.suffix.lower() == ".off" else str(path)
        )
        kind = path.suffix[1:].lower()
        mesh: Any = trimesh.load(source, file_type=kind, force="mesh", process=False)
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    except DataError:
        raise
    except Exception as error:  # whatever its parsers come upon
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as a mesh ({reason}); fetch it again") from None
    if not len(faces) or not np.isfinite(vertices).all():
        raise DataError(f"{path}: holds no triangles with finite corners; fetch it again")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise DataError(f"{path}: has a triangle with a corner that is not there; fetch it again")
    return vertices, faces


def _off(path: Path) -> str:
    """Returns the text of an OFF file, all of it there, without comments.

    Faces of more than four corners become triangles.

    Raises:
      DataError: it cannot be read, or promises more than it holds.
    """
    text = re.sub(r"#[^\n]*", "", read_text(path, errors="replace"))
    header = re.match(r"\s*OFF\s*(\d+)\s+(\d+)[^\n]*", text)
    if header is None:
        raise DataError(f"{path}: does not begin with OFF and its counts; fetch it again")
    vertices, faces = map(int, header.groups())
    lines = [line for line in text[header.end() :].split("\n") if line.strip()]
    polygons = [line.split() for line in lines[vertices : vertices + faces]]
    if len(polygons) < faces or any(len(polygon) <= int(polygon[0]) for polygon in polygons):
        raise DataError(
            f"{path}: {vertices} corners and {faces} faces do not fit its {len(text)} characters; "
            "fetch it again"
        )
    kept = []
    for polygon in polygons:
        count, *corners = polygon[: int(polygon[0]) + 1]
        if int(count) <= 4:
            kept.append([count, *corners])
            continue
        kept += [["3", corners[0], *corners[i : i + 2]] for i in range(1, len(corners) - 1)]
    body = [*lines[:vertices], *map(" ".join, kept)]
    return "\n".join((f"OFF\n{vertices} {len(kept)} 0", *body))


def voxelise(
    vertices: np.ndarray, faces: np.ndarray, resolution: int, fill: str = "surface"
) -> np.ndarray:
    """Returns bool ``[resolution, resolution, resolution]``, axes (z, y, x).

    Args:
      vertices: ``[vertices, 3]``, components (x, y, z).
      faces: ``[triangles, 3]``.
      resolution: voxels along a side.
      fill: "surface" marks voxels that the surface passes through; "solid" those whose centre
        is inside, which needs a closed surface.

    Raises:
      ConfigError: another ``fill``, or a resolution below 2.
      DataError: a mesh without extent, or one that is to be solid and is not closed.
    """
    if fill not in FILLS or resolution < 2:
        raise ConfigError(
            f"fill must be one of {', '.join(FILLS)} and resolution at least 2, not '{fill}' and "
            f"{resolution}"
        )
    low, high = vertices.min(0), vertices.max(0)
    extent = (high - low).max()
    if not extent > 0:
        raise DataError("a mesh whose corners are all in one point cannot be made voxels")
    placed = (vertices - (low + high) / 2) * (_SHRINK * resolution / extent) + resolution / 2
    if fill == "surface":
        return _surface(placed[faces], resolution)
    if not is_closed(vertices, faces):
        raise DataError(
            "the mesh is not watertight: an edge does not belong to two triangles; mend it, or "
            "take fill='surface'"
        )
    return _solid(placed[faces], resolution)


def is_closed(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether every edge, corners in one place taken together, belongs to two triangles."""
    _, number = np.unique(vertices, axis=0, return_inverse=True)
    corners = number.reshape(-1)[faces]
    edges = np.sort(np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]]), 1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return bool((counts == 2).all())


def _surface(triangles: np.ndarray, resolution: int) -> np.ndarray:
    """Marks the voxels of points on the triangles that are at most half a voxel apart."""
    voxels = np.zeros((resolution,) * 3, bool)
    sides = np.linalg.norm(triangles - np.roll(triangles, 1, 1), axis=-1).max(1)
    pieces = np.maximum(np.ceil(2 * sides).astype(int), 1)
    for count in np.unique(pieces):
        first, second = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        inside = first + second <= count
        shares = np.stack([first[inside], second[inside]], -1) / count
        weights = np.concatenate([1 - shares.sum(-1, keepdims=True), shares], -1)
        for chosen in np.array_split(
            triangles[pieces == count], 1 + (pieces == count).sum() // 256
        ):
            points = np.einsum("pc,tcd->tpd", weights, chosen).reshape(-1, 3)
            x, y, z = np.clip(points.astype(int), 0, resolution - 1).T
            voxels[z, y, x] = True
    return voxels


def _solid(triangles: np.ndarray, resolution: int) -> np.ndarray:
    """Marks the voxels above whose centre a ray crosses the surface an odd number of times."""
    centres = np.arange(resolution) + 0.5
    y, x = np.meshgrid(centres, centres, indexing="ij")
    rays = np.stack([x, y], -1).reshape(-1, 2) + _OFFSET
    crossings = np.zeros((resolution, len(rays)), np.int64)
    for start in range(0, len(triangles), _BLOCK):
        block = triangles[start : start + _BLOCK]
        a, b, c = (block[:, i, None] for i in range(3))
        area = _cross(b[..., :2] - a[..., :2], c[..., :2] - a[..., :2])
        flat = np.abs(area) < 1e-12  # seen edge-on
        area = np.where(flat, 1.0, area)
        second = _cross(rays - a[..., :2], c[..., :2] - a[..., :2]) / area
        third = _cross(b[..., :2] - a[..., :2], rays - a[..., :2]) / area
        hit = (second >= 0) & (third >= 0) & (second + third <= 1) & ~flat
        height = a[..., 2] + second * (b - a)[..., 2] + third * (c - a)[..., 2]
        for level, centre in enumerate(centres):
            crossings[level] += (hit & (height > centre)).sum(0)
    inside: np.ndarray = crossings % 2 == 1
    return inside.reshape((resolution,) * 3)


def _cross(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    areas: np.ndarray = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return areas
