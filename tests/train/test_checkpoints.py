"""A checkpoint is whole, or known not to be; and reading one changes nothing."""

import errno
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from jaxeff.errors import CheckpointError
from jaxeff.train import fingerprint
from jaxeff.train.checkpoint import Checkpoints

STEPS = (5, 9)
VALUES = {"position": {"next_index": 12}, "seconds": 1 / 3}


def tree_of(step):
    draw = np.random.default_rng(step)
    return {
        "train": {
            "kernel": jnp.asarray(draw.normal(size=(300, 40)), jnp.float32),
            "half": jnp.asarray(draw.normal(size=(50, 50)), jnp.bfloat16),
            "key": jax.random.key(step),
            "moments": (jnp.ones(3), {"zeros": jnp.zeros(200)}),
        },
        "best": jnp.arange(1000.0),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in STEPS:
        checkpoints.save(step, tree_of(step), {**VALUES, "step": step}, wait=True)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def files_in(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restored(folder, like=None, **options):
    return Checkpoints(folder, warn=lambda _: None).restore(like or tree_of(0), **options)


def spoil(folder, step):
    for path in (folder / str(step) / "state").rglob("d/*"):
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))


def test_no_flipped_bit_passes_for_a_number(folder, named_arrays):
    """Whichever file a bit is flipped in, what is restored was saved like that."""
    draw, fell_back = random.Random(0), 0
    expected = {
        step: {name: array.tobytes() for name, array in named_arrays(tree_of(step)).items()}
        for step in STEPS
    }
    contents = files_in(folder / "9")
    largest = max(contents, key=lambda path: len(contents[path]))
    for path in [*contents, *[largest] * 6]:
        if not contents[path]:
            continue
        flipped = bytearray(contents[path])
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        step, tree, values = restored(folder)
        assert {n: a.tobytes() for n, a in named_arrays(tree).items()} == expected[step], path
        assert values == {**VALUES, "step": step}
        fell_back += step == 5
        path.write_bytes(contents[path])
    assert fell_back >= 6  # the arrays' bytes, at the least


def test_changed_plain_value_is_damage():
    packed = fingerprint.pack({"x": jnp.ones(2)}, VALUES)
    assert fingerprint.unpack(packed)["values"] == VALUES
    record = packed["record"].copy()
    record[packed["record"].tobytes().index(b"12")] = ord("2")
    with pytest.raises(fingerprint.DamageError, match="plain values"):
        fingerprint.unpack({**packed, "record": record})


PASSING = [
    MemoryError("out of memory"),
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    ValueError("Error reading local file: Input/output error [os_error_code='5']"),
    ValueError("RESOURCE_EXHAUSTED: Error opening file: too many open files"),
    RuntimeError("a library of another version"),
]


@pytest.mark.parametrize("error", PASSING, ids=[f"{type(e).__name__}_{e}"[:30] for e in PASSING])
def test_passing_error_leaves_everything(folder, monkeypatch, error):
    before = files_in(folder.parent)

    def fails(*_):
        raise KeyError("what Orbax makes of every error") from error

    with monkeypatch.context() as patched:
        patched.setattr(ocp, "load_checkpointables", fails)
        with pytest.raises(CheckpointError) as caught:
            restored(folder, set_aside=True)
    assert str(caught.value).startswith(f"checkpoint of step 9 in {folder} could not be read (")
    assert "\n" not in str(caught.value)
    assert files_in(folder.parent) == before
    assert restored(folder)[0] == 9


def test_damaged_one_is_set_aside_by_a_writer_alone(folder):
    spoil(folder, 9)
    before = files_in(folder.parent)
    assert restored(folder)[0] == 5
    assert files_in(folder.parent) == before
    aside = folder.with_name("checkpoints-damaged")
    for copies in (["9"], ["9", "9-2"]):
        assert restored(folder, set_aside=True)[0] == 5
        assert Checkpoints(folder).steps == [5]
        assert sorted(path.name for path in aside.iterdir()) == copies
        shutil.copytree(aside / "9", folder / "9")


def test_where_all_are_damaged_they_stay_and_nothing_starts_anew(folder):
    for step in STEPS:
        spoil(folder, step)
    before = files_in(folder.parent)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read.*left there"):
            restored(folder, set_aside=True)
    assert files_in(folder.parent) == before


def test_run_whose_checkpoints_were_all_set_aside_does_not_start_anew(folder):
    folder.rename(folder.with_name("checkpoints-damaged"))
    with pytest.raises(CheckpointError, match=r"damaged ones, in .*checkpoints-damaged; delete"):
        restored(folder)


def test_folder_without_its_metadata_is_not_overlooked(folder):
    (folder / "9" / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(folder / "5")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read"):
        restored(folder)


def test_another_state_is_named_and_not_taken_for_damage(folder):
    before = files_in(folder.parent)
    like = tree_of(0)
    like["train"]["moments"] = (jnp.ones(4), like["train"]["moments"][1])
    with pytest.raises(CheckpointError) as caught:
        restored(folder, like, set_aside=True)
    assert "train/moments/0 is (3,) float32 there and (4,) float32 here" in str(caught.value)
    assert files_in(folder.parent) == before


def test_part_of_a_checkpoint_is_read_whatever_the_rest_is(folder, named_arrays):
    like = {"train": {"kernel": jnp.zeros((300, 40))}, "best": jnp.zeros(1000)}
    step, tree, _ = restored(folder, like, part=True)
    assert step == 9
    assert jax.tree.structure(tree) == jax.tree.structure(like)
    wanted = named_arrays(tree_of(9))
    for name, array in named_arrays(tree).items():
        np.testing.assert_array_equal(array, wanted[name])
    with pytest.raises(CheckpointError, match=r"does not fit.* here"):
        restored(folder, like)


def test_shapes_are_enough_to_restore(folder, named_arrays):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree_of(0)
    )
    found, wanted = (named_arrays(tree) for tree in (restored(folder, like)[1], tree_of(9)))
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}


def test_opening_beside_a_running_save_leaves_it(folder):
    flight = folder / "14.orbax-checkpoint-tmp"
    shutil.copytree(folder / "9", flight)
    before = files_in(flight)
    assert restored(folder)[0] == 9
    Checkpoints(folder).close()
    assert files_in(flight) == before
    Checkpoints(folder).remove_unfinished()
    assert sorted(path.name for path in folder.iterdir()) == ["5", "9"]


def test_checkpoint_removed_by_a_training_while_it_is_read(folder, monkeypatch):
    """The newest of the list has become too old, and a newer one is there."""
    reader = Checkpoints(folder)
    load = reader._load

    def loading(step, like, **_):
        if step == 9:
            shutil.copytree(folder / "9", folder / "14")
            shutil.rmtree(folder / "9")
        return load(step, like)

    monkeypatch.setattr(reader, "_load", loading)
    assert reader.restore(tree_of(0))[0] == 14


def test_checkpoint_without_digests_is_restored(tmp_path, named_arrays):
    """As runs of older versions left them."""
    tree = tree_of(3)
    types = {
        jax.tree_util.keystr(path): f"{leaf.shape} {leaf.dtype}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    plain = {"values": VALUES, "types": types}
    ocp.save_checkpointables(tmp_path / "3", {"state": tree, "plain": plain})
    step, found, values = restored(tmp_path)
    assert (step, values) == (3, VALUES)
    assert {n: a.tobytes() for n, a in named_arrays(found).items()} == {
        n: a.tobytes() for n, a in named_arrays(tree).items()
    }


@pytest.mark.parametrize("when", ["at_once", "in_the_background"])
def test_full_disk_loses_no_checkpoint(folder, monkeypatch, when):
    before, full = files_in(folder), OSError(errno.ENOSPC, "No space left on device")

    class Failing:
        def result(self):
            raise full

    def saving(path, *_, **__):
        (path.parent / "14.orbax-checkpoint-tmp").mkdir()
        if when == "at_once":
            raise full
        return Failing()

    checkpoints = Checkpoints(folder)
    with monkeypatch.context() as patched:
        patched.setattr(ocp, "save_checkpointables_async", saving)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(14, tree_of(14), VALUES, wait=True)
    assert str(caught.value) == (
        f"the checkpoint of step 14 could not be saved in {folder} (OSError: [Errno 28] No space "
        "left on device); with the cause gone, the same command goes on from step 9"
    )
    assert files_in(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == ["5", "9"]
    checkpoints.save(14, tree_of(14), VALUES, wait=True)
    assert checkpoints.steps == [9, 14]


def test_folder_that_vanished_is_not_made_again(folder):
    checkpoints = Checkpoints(folder)
    shutil.rmtree(folder.parent)
    with pytest.raises(CheckpointError, match=f"{folder.parent} is gone"):
        checkpoints.save(14, tree_of(14), VALUES)
    assert not folder.parent.exists()
