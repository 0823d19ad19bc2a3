"""Images decoded from folders: what is seen of each, and that draws belong to examples."""

import os

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import decode, image_folder
from jaxeff.data.augment import Augmentation
from jaxeff.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image")
SIZE = 32


def picture(width, height, seed=0):
    """Smooth, so that resizing changes little: red grows along the columns, green along rows."""
    rows, columns = np.mgrid[:height, :width]
    red, green = 255 * (columns + 0.5) / width, 255 * (rows + 0.5) / height
    return np.stack([red, green, np.full_like(red, 20 * seed)], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    shapes = [(90, 60), (60, 90), (64, 64), (200, 150), (33, 40)]
    for part, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("ant", "bee")):
            place = folder / "imagenet" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(picture(*shapes[number], label))
                image.save(place / f"{number}.{('png', 'JPEG')[number == 3]}", quality=95)
            (place / "notes.txt").write_text("no image")
    return folder


def load(root, **options):
    return data.load("image_folder", dir=str(root), size=SIZE, validation_fraction=0.2, **options)


def test_evaluation_sees_the_central_square(root):
    dataset = load(root, normalize="unit")
    assert dataset.input_shape == (SIZE, SIZE, 3)
    assert dataset.class_names == ("ant", "bee")
    assert [len(dataset.splits[s]) for s in ("train", "validation", "test")] == [8, 2, 4]
    batch = dataset.splits["test"].take(np.arange(4))
    np.testing.assert_array_equal(batch["labels"], [0, 0, 1, 1])
    assert batch["inputs"].dtype == np.float32
    # The first is 90 x 60: a square of 52.5 about the middle.
    steps = (np.arange(SIZE) + 0.5) / SIZE * 52.5
    red, green = (45 - 26.25 + steps) / 90, (30 - 26.25 + steps) / 60
    wide = batch["inputs"][0]
    np.testing.assert_allclose(wide[..., 0], np.tile(red, (SIZE, 1)), atol=0.02)
    np.testing.assert_allclose(wide[..., 1], np.tile(green[:, None], SIZE), atol=0.02)
    np.testing.assert_allclose(batch["inputs"][2, ..., 2], 20 / 255, atol=1e-6)


def test_standard_is_by_the_published_moments(root):
    unit, standard = load(root, normalize="unit"), load(root)
    rows = np.arange(4)
    expected = (unit.splits["test"].take(rows)["inputs"] - image_folder.MEAN) / (
        np.array(image_folder.DEVIATION)
    )
    np.testing.assert_allclose(standard.splits["test"].take(rows)["inputs"], expected, atol=1e-5)


def test_random_parts_have_the_area_and_shape_asked_for():
    drawn = np.random.default_rng(0).random((4000, 10, 4))
    boxes = np.array([image_folder.random_box(d, 160, 100, 0.1) for d in drawn])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 160 + 1e-9).all()
    assert (bottom <= 100 + 1e-9).all()
    area, ratio = (right - left) * (bottom - top) / 16000, (right - left) / (bottom - top)
    assert (area >= 0.1 - 1e-9).all()
    assert (np.abs(np.log(ratio)) <= np.log(4 / 3) + 1e-9).all()
    # Before anything is refused for not fitting, areas are uniform and shapes log-uniform.
    small = area < 0.4
    assert 0.35 < np.mean(area[small] < 0.25) < 0.65
    assert abs(np.log(ratio[small]).mean()) < 0.02
    assert area.max() > 0.75  # of at most (4 / 3) 100 x 100 in 160 x 100
    # Places are uniform among those that fit.
    assert abs(np.mean(left / (160 - (right - left))) - 0.5) < 0.02


def test_a_part_that_never_fits_is_the_largest_central_one():
    always_too_wide = np.full((10, 4), [1.0, 0.5, 0.3, 0.3])
    assert image_folder.random_box(always_too_wide, 300, 100, 0.1) == pytest.approx(
        (150 - 200 / 3, 0, 150 + 200 / 3, 100)
    )
    assert image_folder.random_box(always_too_wide, 100, 300, 0.1) == pytest.approx(
        (0, 150 - 200 / 3, 100, 150 + 200 / 3)
    )


def test_a_jpeg_decoded_at_a_fraction_of_its_size_shows_the_same_part(tmp_path):
    pixels = picture(1600, 1200)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    box = (201.0, 99.0, 1001.0, 899.0)
    jpeg, png = (
        decode.resized(str(tmp_path / name), SIZE, lambda w, h: box).astype(int)
        for name in ("a.jpg", "a.png")
    )
    assert np.abs(jpeg - png).max() <= 3
    expected = (201 + (np.arange(SIZE) + 0.5) / SIZE * 800) / 1600 * 255
    assert np.abs(png[5, :, 0] - expected).max() < 2


def test_training_parts_are_of_the_example_and_its_draw(root):
    augment = {"part": 0.2, "flip": True}
    split = load(root, augment=augment, normalize="unit").splits["train"]
    stream = data.make_train_iterator(split, batch_size=4, seed=1)
    first = next(stream)
    halves = [
        next(
            data.make_train_iterator(split, batch_size=4, seed=1, process_index=i, process_count=2)
        )
        for i in range(2)
    ]
    together = np.concatenate([half["inputs"] for half in halves])
    np.testing.assert_array_equal(together, first["inputs"])
    # Over epochs an example is cut differently; evaluation never is.
    later = [next(stream) for _ in range(6)]
    assert len({batch["inputs"].tobytes() for batch in [first, *later]}) == 7
    np.testing.assert_array_equal(
        split.take(np.arange(2))["inputs"], split.take(np.arange(2))["inputs"]
    )


def test_random_parts_need_files():
    with pytest.raises(ConfigError, match=r"use augment\.crop"):
        data.load("digits", augment={"part": 0.1})
    with pytest.raises(ConfigError, match="must be at most 1"):
        Augmentation.build({"part": 2.0})


def test_erasing_fills_rectangles_with_noise():
    images = np.full((400, 24, 16, 3), 7, np.uint8)
    keys = np.arange(400, dtype=np.uint64)
    found = Augmentation(erase=0.25)(images, keys)
    changed = (found != images).any(-1)
    hit = changed.any((1, 2))
    assert 0.18 < hit.mean() < 0.32
    for hole in changed[hit]:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        box = hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.9  # noise of the very value it replaces is rare
        assert box.size <= 24 * 16 / 3 + 1
    noise = found[hit][changed[hit]]
    assert abs(noise.mean() - 127.5) < 5
    assert (images == 7).all()


def test_what_is_wrong_with_a_folder(root, tmp_path):
    with pytest.raises(DataError, match="no folders 'train' and 'val'"):
        data.load("image_folder", dir=str(tmp_path))
    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in folders of classes"):
        data.load("image_folder", dir=str(tmp_path))
    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "ant" / "0.png").write_bytes(b"no picture")
    dataset = data.load("image_folder", dir=str(tmp_path), validation_fraction=0.0)
    with pytest.raises(DataError, match=r"ant/0.png: cannot be read as an image"):
        dataset.splits["train"].take(np.arange(1))
    (tmp_path / "imagenet" / "val" / "wasp").mkdir()
    with pytest.raises(DataError, match="'wasp' is not among the 1"):
        data.load("image_folder", dir=str(tmp_path))
    with pytest.raises(ConfigError, match="size must be at least 1"):
        data.load("image_folder", dir=str(root), size=0)


def test_linked_folders_are_entered_once(tmp_path):
    inner = tmp_path / "set" / "a"
    inner.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (inner / "1.png", tmp_path / "elsewhere" / "2.png"):
        path.write_bytes(b"")
    (inner / "more").symlink_to(tmp_path / "elsewhere")
    (inner / "again").symlink_to(tmp_path / "elsewhere")
    (inner / "round").symlink_to(inner)
    files, labels, _ = image_folder.list_images(tmp_path / "set")
    assert [path.removeprefix(str(inner)) for path in files] == ["/1.png", "/again/2.png"]
    assert labels.tolist() == [0, 0]


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch):
    (tmp_path / "a" / "shut").mkdir(parents=True)
    (tmp_path / "a" / "1.png").write_bytes(b"")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"a/shut: cannot be listed \(Permission denied\)"):
        image_folder.list_images(tmp_path)
