"""Image files of any kind: depth, orientation and transparency, and folders as they lie around."""

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data.decode import resized
from jaxeff.data.image_folder import list_images
from jaxeff.errors import DataError

Image = pytest.importorskip("PIL.Image")

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))


def whole(path, size=64):
    return resized(str(path), size, lambda w, h: (0, 0, w, h)).astype(int)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("16.png", RAMP.astype(np.uint16) * 257),
        ("16.tif", RAMP.astype(np.uint16) * 257),
        ("big_endian.tif", (RAMP.astype(np.uint16) * 257).astype(">u2")),
        ("16.pgm", (RAMP.astype(np.int32) * 257)),
        ("32.tif", RAMP.astype(np.int32) * 257),
        ("bytes.tif", RAMP.astype(np.int32)),
        ("shares.tif", (RAMP / 255).astype(np.float32)),
        ("floats.tif", RAMP.astype(np.float32)),
        ("deep_floats.tif", RAMP.astype(np.float32) * 257),
        ("shares.pfm", (RAMP / 255).astype(np.float32)),
    ],
)
def test_grey_of_any_depth_is_seen_like_8_bits(tmp_path, name, values):
    Image.fromarray(RAMP).save(tmp_path / "8.png")
    Image.fromarray(values).save(tmp_path / name, "PPM" if name.endswith(".pfm") else None)
    expected = whole(tmp_path / "8.png")
    assert np.ptp(expected) > 240
    assert np.abs(whole(tmp_path / name) - expected).max() <= 1


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan])
def test_values_without_a_white_are_refused(tmp_path, value):
    pixels = np.zeros((4, 4), np.float32)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .* no shares of white"):
        whole(tmp_path / "a.tif", 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_pictures_stand_upright(tmp_path, orientation, name):
    # The EXIF standard's own words: where the stored first row and first column are seen.
    rows, columns = np.mgrid[:120, :200]
    pixels = np.stack([rows * 2, columns, np.full_like(rows, 90)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, quality=98)
    top, left = {
        1: ("row", "column"),
        2: ("row", "-column"),
        3: ("-row", "-column"),
        4: ("-row", "column"),
        5: ("column", "row"),
        6: ("column", "-row"),
        7: ("-column", "-row"),
        8: ("-column", "row"),
    }[orientation]
    found = resized(str(tmp_path / name), 20, lambda w, h: (0, 0, w, h)).astype(int)
    parts = {"row": found[..., 0] / 240, "column": found[..., 1] / 200}
    for axis, what in ((0, top), (1, left)):
        share = parts[what.lstrip("-")].take([1, -2], axis).mean(1 - axis)
        assert (share[0] < 0.2) == (not what.startswith("-"))
        assert (share[1] < 0.2) == what.startswith("-")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_colours_of_transparent_pixels_are_not_seen(tmp_path, mode):
    for name, colour in (("a", 250), ("b", 20)):
        pixels = np.full((8, 8, 4), colour, np.uint8)
        pixels[:4] = 200
        pixels[..., 3] = np.where(np.arange(8)[:, None] < 4, 255, 0)
        image = Image.fromarray(pixels)
        if mode == "P":
            image = Image.fromarray(np.where(pixels[..., 3] > 0, 1, 2).astype(np.uint8), "L")
            image = image.convert("P")
            image.putpalette([0, 0, 0, 200, 200, 200, colour, colour, colour])
            image.info["transparency"] = 2
        elif mode != "RGBA":
            image = image.convert("LA").convert(mode)
        image.save(tmp_path / f"{name}.png")
    found = [whole(path, 8) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0][0].min() == 200
    assert found[0][7].max() == 0


def tree(root, names, parts=("train", "val")):
    """A picture of every name, ``CLASS/FILE``, in every part."""
    for part in parts:
        for name in names:
            path = root / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path, "PNG")


def test_companions_of_other_systems_are_no_images_and_no_classes(tmp_path):
    tree(tmp_path, ["ant/0.png", "bee/UPPER.PNG", "bee/deep/er/1.tif"])
    part = tmp_path / "train"
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".Trash-1000"):
        (part / name).mkdir()
        (part / "ant" / name).mkdir()
        (part / "ant" / name / "2.png").touch()
    (part / "ant" / "._0.png").touch()
    files, labels, names = list_images(part)
    assert names == ["ant", "bee"]
    assert [str(part / n) for n in ("ant/0.png", "bee/UPPER.PNG", "bee/deep/er/1.tif")] == files
    assert labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("inside", ["", "imagenet"])
def test_both_documented_layouts_are_found(tmp_path, inside):
    tree(tmp_path / inside, ["ant/0.png", "bee/0.png"])
    dataset = data.load("image_folder", dir=str(tmp_path), size=4, validation_fraction=0)
    assert dataset.class_names == ("ant", "bee")
    assert [len(dataset.splits[part]) for part in ("train", "test")] == [2, 2]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("left", ["nothing", "notes", "folder"])
def test_a_class_without_images_is_named(tmp_path, part, left):
    tree(tmp_path, ["ant/0.png", "bee/0.png"])
    (tmp_path / part / "bee" / "0.png").unlink()
    if left == "notes":
        (tmp_path / part / "bee" / "notes.txt").touch()
    if left == "folder":
        (tmp_path / part / "bee").rmdir()
        other = {"train": "val", "val": "train"}[part]
        wanted = "'bee' is not among" if other == "val" else "no images of class 'bee'"
    else:
        wanted = "no images of class 'bee'"
    with pytest.raises(DataError, match=wanted):
        data.load("image_folder", dir=str(tmp_path), size=4, validation_fraction=0)
