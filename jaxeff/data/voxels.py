"""Voxels in random poses: extruded digits, which are always there, and the objects of ModelNet.

References:
  Z. Wu et al. 3D ShapeNets: A Deep Representation for Volumetric Shapes. CVPR 2015 (ModelNet).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxeff.data.base import DATASETS, Dataset, Request
from jaxeff.data.images import split_indices
from jaxeff.data.posed import TURNS, Turn, posed_dataset, whole
from jaxeff.data.voxelise import RULE, read_mesh, voxelise
from jaxeff.errors import ConfigError, DataError
from jaxeff.files import paths
from jaxeff.files.reading import is_companion, npz_bytes, read_npz, replace
from jaxeff.registry import closest

MODELNET10 = (
    *("bathtub", "bed", "chair", "desk", "dresser"),
    *("monitor", "night_stand", "sofa", "table", "toilet"),
)


def _turn(rotation: str) -> Turn:
    if rotation not in TURNS:
        raise ConfigError(
            f"config.data.rotation: unknown choice '{rotation}'{closest(rotation, TURNS)}"
        )
    return TURNS[rotation]


@DATASETS.register("digit_voxels")
def digit_voxels(
    request: Request,
    *,
    size: int = 16,
    scale: float = 1.25,
    thickness: int = 3,
    rotation: str = "uniform",
    translation: float = 0.0,
    redraw: bool = True,
) -> Dataset:
    """Scikit-learn's digits as bodies: 8x8 voxels, some deep, turned in a cube.

    Args:
      request: see `Request`.
      size: side of the cube.
      scale: enlargement of the bodies.
      thickness: voxels of depth before the enlargement.
      rotation: name in `jaxeff.data.posed.TURNS`.
      translation: shifts are drawn from U(-translation, translation), in half sides.
      redraw: whether training sees an example in a new pose every time.

    Raises:
      ConfigError: an impossible field.
    """
    request.refuse_view("digit_voxels")
    if thickness < 1:
        raise ConfigError(f"config.data.thickness must be at least 1, not {thickness}")
    turn = _turn(rotation)
    source = DATASETS["digits"](request)
    parts = {}
    for name, split in source.splits.items():
        images, labels = whole(split)
        parts[name] = (np.repeat(images[:, None], thickness, 1), labels)
    return posed_dataset(
        "digit_voxels",
        parts,
        size=size,
        scale=scale,
        turn=turn,
        translation=translation,
        redraw=redraw,
        seed=request.split_seed,
        origin=source.description.split(":")[0],
        class_names=source.class_names,
    )


def read_folder(
    folder: Path, classes: Sequence[str], part: str, resolution: int, fill: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns voxels float32 ``[objects, r, r, r, 1]`` and labels of ``folder/CLASS/PART/*.off``.

    Voxels are kept beside the meshes in ``CLASS/PART.FILL.RESOLUTION.npz`` where that can be
    written, with a digest of the meshes that they were made of.

    Raises:
      DataError: a class has no meshes, or a mesh cannot be used.
    """
    voxels, labels = [], []
    for number, name in enumerate(classes):
        inside = sorted((folder / name / part).glob("*"))
        files = [p for p in inside if p.suffix.lower() == ".off" and not is_companion(p.name)]
        if not files:
            raise DataError(
                f"{folder / name / part}: has no .off files; unpack ModelNet10.zip of "
                "modelnet.cs.princeton.edu and set --config.data.dir to its folder"
            )
        archive = folder / name / f"{part}.{fill}.{resolution}.npz"
        voxels.append(_kept(archive, files, fill, resolution))
        labels.append(np.full(len(files), number, np.int32))
    return np.concatenate(voxels)[..., None].astype(np.float32), np.concatenate(labels)


def _kept(archive: Path, files: list[Path], fill: str, resolution: int) -> np.ndarray:
    """Returns the voxels of meshes, kept ones if they were made of these very contents."""
    key = _key(files)
    if archive.is_file():
        # A damaged archive is made again, like one of other contents.
        with contextlib.suppress(DataError):
            kept = read_npz(archive, len(files) * resolution**3 + len(key) * 4)
            if str(kept.get("key", "")) == key and "voxels" in kept:
                return kept["voxels"]
    volumes = []
    for path in files:
        try:
            volumes.append(voxelise(*read_mesh(path), resolution, fill))
        except DataError as error:
            raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    voxels = np.stack(volumes)
    with contextlib.suppress(OSError):  # a folder that cannot be written is read again next time
        content = npz_bytes(key=np.array(key), voxels=voxels)
        replace(archive, lambda file: file.write(content))
    return voxels


def _key(files: list[Path]) -> str:
    """Returns a digest of names and contents, and of the rule that makes voxels of them."""
    digest = hashlib.blake2b(str(RULE).encode(), digest_size=16)
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        digest.update(f"{path.name}/{len(content)}/".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


@DATASETS.register("modelnet10")
def modelnet10(
    request: Request,
    *,
    classes: Sequence[str] = MODELNET10,
    resolution: int = 32,
    fill: str = "surface",
    size: int = 48,
    rotation: str = "uniform",
    translation: float = 0.0,
    redraw: bool = True,
) -> Dataset:
    """ModelNet10's objects as voxels, turned in a larger cube; meshes are read by trimesh.

    Args:
      request: see `Request`; ``dir`` is the folder with one folder per class.
      classes: which, such as ``("sofa",)``.
      resolution: voxels along an object's longest side.
      fill: "surface" or "solid", see `jaxeff.data.voxelise.voxelise`.
      size: side of the cube.
      rotation: name in `jaxeff.data.posed.TURNS`; "euler" is the published draw.
      translation: shifts are drawn from U(-translation, translation), in half sides.
      redraw: whether training sees an object in a new pose every time.

    Raises:
      ConfigError: an impossible field.
      DataError: meshes are missing or cannot be used.
    """
    request.refuse_view("modelnet10")
    turn = _turn(rotation)
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"config.data.classes must name classes once each, not {tuple(classes)}")
    for name in classes:
        if name not in MODELNET10:
            raise ConfigError(
                f"config.data.classes: unknown class '{name}'{closest(name, list(MODELNET10))}"
            )
    folder = paths.data_dir(request.dir)
    folder = folder if request.dir else folder / "ModelNet10"
    images, labels = read_folder(folder, classes, "train", resolution, fill)
    train, validation, calibration = split_indices(
        len(labels), request.validation_fraction, request.split_seed, request.calibration_fraction
    )
    request.require_parts(
        "modelnet10",
        len(labels),
        train=len(train),
        validation=len(validation),
        calibration=len(calibration),
    )
    rows = {"train": train, "validation": validation}
    rows |= {"calibration": calibration} if request.calibration_fraction else {}
    parts = {name: (images[index], labels[index]) for name, index in rows.items()}
    parts["test"] = read_folder(folder, classes, "test", resolution, fill)
    return posed_dataset(
        "modelnet10",
        parts,
        size=size,
        scale=1.0,
        turn=turn,
        translation=translation,
        redraw=redraw,
        seed=request.split_seed,
        origin=str(folder),
        class_names=tuple(classes),
    )
