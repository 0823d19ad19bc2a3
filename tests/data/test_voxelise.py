"""Voxels of meshes whose volume is known, and files that are no meshes."""

import os

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import voxels
from jaxeff.data.voxelise import is_closed, read_mesh, voxelise
from jaxeff.errors import ConfigError, DataError

CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
FACES = np.array(
    [
        *([0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]),
        *([2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]),
    ]
)


def box(x, y, z):
    """A box about a point that is not the origin."""
    return CORNERS * [x, y, z] + [3.0, -2.0, 0.7]


def test_a_solid_box_has_its_volume_in_its_place():
    voxels = voxelise(box(1, 0.5, 0.25), FACES, 8, "solid")
    wanted = np.zeros((8, 8, 8), bool)
    wanted[3:5, 2:6, :] = True  # axes (z, y, x)
    np.testing.assert_array_equal(voxels, wanted)
    # Rays meet the edges on which two triangles of a cube's side join.
    assert voxelise(box(1, 1, 1), FACES, 8, "solid").all()


def test_the_surface_of_a_box_is_its_hull():
    voxels = voxelise(box(1, 0.5, 0.5), FACES, 8, "surface")
    wanted = np.zeros((8, 8, 8), bool)
    wanted[2:6, 2:6, :] = True
    wanted[3:5, 3:5, 1:7] = False
    np.testing.assert_array_equal(voxels, wanted)


def test_a_solid_ball_has_about_its_volume():
    # An octahedron, refined onto the sphere.
    points = np.concatenate([np.eye(3), -np.eye(3)])
    triangles = points[
        [[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]]
    ]
    for _ in range(4):
        a, b, c = (triangles[:, i] for i in range(3))
        ab, bc, ca = ((p + q) / np.linalg.norm(p + q, axis=1, keepdims=True)
                      for p, q in ((a, b), (b, c), (c, a)))  # fmt: skip
        triangles = np.concatenate(
            [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        )
    vertices = triangles.reshape(-1, 3)
    faces = np.arange(len(vertices)).reshape(-1, 3)
    voxels = voxelise(vertices, faces, 24, "solid")
    assert abs(voxels.sum() / (4 / 3 * np.pi * 12**3) - 1) < 0.02
    hull = voxelise(vertices, faces, 24, "surface")
    assert not hull[12, 12, 12]
    assert hull.any((1, 2)).all()


def test_an_open_box_is_not_watertight():
    assert is_closed(box(1, 1, 1), FACES)
    assert not is_closed(box(1, 1, 1), FACES[:-1])
    with pytest.raises(DataError, match=r"not watertight: .* take fill='surface'"):
        voxelise(box(1, 1, 1), FACES[:-1], 8, "solid")
    assert voxelise(box(1, 1, 1), FACES[:-1], 8, "surface").any()


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(ConfigError, match="fill must be one of surface, solid"):
        voxelise(box(1, 1, 1), FACES, 8, "filled")
    with pytest.raises(DataError, match="corners are all in one point"):
        voxelise(box(0, 0, 0), FACES, 8)


def off(vertices, faces):
    lines = ["OFF", f"{len(vertices)} {len(faces)} 0"]
    lines += [" ".join(map(str, v)) for v in vertices]
    return "\n".join([*lines, *(f"3 {a} {b} {c}" for a, b, c in faces)]) + "\n"


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("trimesh")
    for part, count in (("train", 4), ("test", 2)):
        for name in ("sofa", "chair"):
            place = tmp_path / name / part
            place.mkdir(parents=True)
            for number in range(count):
                sides = (1, 0.5, 0.25 if name == "sofa" else 1)
                text = off(box(*sides) * (number + 1), FACES)
                (place / f"{name}_{number:04d}.off").write_text(text)
    return tmp_path


def test_files_of_meshes(folder):
    vertices, faces = read_mesh(folder / "sofa/train/sofa_0001.off")
    np.testing.assert_allclose(vertices, 2 * box(1, 0.5, 0.25))
    np.testing.assert_array_equal(faces, FACES)
    options = {"dir": str(folder), "classes": ("sofa", "chair"), "resolution": 8, "size": 16}
    options |= {"fill": "solid", "rotation": "none", "validation_fraction": 0.25}
    found = data.load("modelnet10", **options)
    assert [len(found.splits[s]) for s in ("train", "validation", "test")] == [6, 2, 4]
    assert found.class_names == ("sofa", "chair")
    batch = found.splits["test"].take(np.arange(4))
    np.testing.assert_array_equal(batch["labels"], [0, 0, 1, 1])
    np.testing.assert_allclose(batch["inputs"].sum((1, 2, 3, 4)), [64, 64, 256, 256], rtol=1e-5)
    assert batch["inputs"].shape == (4, 16, 16, 16, 1)


def test_voxels_are_kept_as_long_as_the_meshes_are_the_same(folder, monkeypatch):
    made = []
    monkeypatch.setattr(voxels, "voxelise", lambda *args: made.append(1) or voxelise(*args))

    def read():
        made.clear()
        return voxels.read_folder(folder, ["sofa"], "test", 8, "solid")[0], len(made)

    first, count = read()
    assert count == 2
    kept = folder / "sofa/test.solid.8.npz"
    assert [path.name for path in kept.parent.glob("*test*")] == ["test", kept.name]
    again, count = read()
    assert count == 0
    np.testing.assert_array_equal(again, first)
    # Cut off, or of another kind: made anew and kept again.
    whole = kept.read_bytes()
    for damage in (whole[:-40], whole[:10], b"", b"no archive"):
        kept.write_bytes(damage)
        again, count = read()
        assert count == 2
        np.testing.assert_array_equal(again, first)
        assert read()[1] == 0
    # Another mesh under an old name, of the same length and time.
    path = folder / "sofa/test/sofa_0001.off"
    before = path.stat()
    text = path.read_text()
    path.write_text(text.replace("1.9\n", "3.9\n"))
    assert path.read_text() != text
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    again, count = read()
    assert count == 2
    kept.unlink()
    np.testing.assert_array_equal(again, read()[0])
    assert (again != first).any()


def test_files_that_are_no_meshes_are_one_sentence(folder):
    path = folder / "sofa/train/sofa_0001.off"
    for text in ("", "OFF\nnothing\n", "\0\1\2", "OFF\n0 0 0\n"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"sofa_0001.off: .*; fetch it again"):
            read_mesh(path)
    path.write_text(off(box(1, 1, 1), FACES[:-1]))
    options = {"dir": str(folder), "classes": ("sofa",), "resolution": 8, "size": 16}
    with pytest.raises(DataError, match=r"sofa_0001.off: the mesh is not watertight"):
        data.load("modelnet10", fill="solid", **options)
    with pytest.raises(DataError, match=r"has no .off files; unpack ModelNet10.zip"):
        data.load("modelnet10", dir=str(folder), classes=("bed",))
    with pytest.raises(ConfigError, match="did you mean 'sofa'"):
        data.load("modelnet10", dir=str(folder), classes=("sofas",))
    for classes in ((), ("sofa", "sofa")):
        with pytest.raises(ConfigError, match=r"config\.data\.classes must name classes once"):
            data.load("modelnet10", dir=str(folder), classes=classes)


def test_meshes_written_on_other_systems(tmp_path):
    pytest.importorskip("trimesh")
    text = off(box(1, 0.5, 0.25), FACES)
    for number, content in enumerate(
        (
            text.replace("\n", "\r\n").encode(),
            b"\xef\xbb\xbf" + text.encode(),
            b"# a comment\n" + text.encode(),
            text.replace("OFF\n", "OFF").encode(),
        )
    ):
        path = tmp_path / f"{number}.off"
        path.write_bytes(content)
        vertices, faces = read_mesh(path)
        np.testing.assert_allclose(vertices, box(1, 0.5, 0.25))
        np.testing.assert_array_equal(faces, FACES)


def test_faces_are_all_there(tmp_path):
    pytest.importorskip("trimesh")
    path = tmp_path / "a.off"
    text = off(box(1, 0.123456789, 0.25) + 1e-9, FACES)
    lines = text.splitlines()
    # Cut off at the end of a line, and within the last face.
    for cut in ("\n".join(lines[:-1]), text.rstrip()[:-2]):
        path.write_text(cut)
        with pytest.raises(DataError, match=r"12 faces do not fit its .*; fetch it again"):
            read_mesh(path)
    path.write_text("\n".join(f"{line} # a face" for line in lines))
    np.testing.assert_array_equal(read_mesh(path)[1], FACES)


def test_faces_of_many_corners_become_triangles(tmp_path):
    pytest.importorskip("trimesh")
    angles = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)
    rows = [" ".join(map(str, corner)) for corner in ring]
    path = tmp_path / "a.off"
    path.write_text("\n".join(["OFF", "6 2 0", *rows, "6 0 1 2 3 4 5 255 0 0", "3 0 2 4"]))
    vertices, faces = read_mesh(path)
    fan = [[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 5]]
    np.testing.assert_array_equal(faces, [*fan, [0, 2, 4]])
    sides = vertices[faces[:4, 1:]] - vertices[faces[:4, :1]]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1).sum() / 2
    np.testing.assert_allclose(area, 1.5 * np.sqrt(3))
