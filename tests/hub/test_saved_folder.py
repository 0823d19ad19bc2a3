"""Files of tensors, written and read, against the package safetensors."""

import ml_dtypes
import numpy as np
import pytest

from jaxeff.errors import DataError
from jaxeff.hub import safetensor_files, saved_folder

RNG = np.random.default_rng(0)
TENSORS = {
    "params/cell_0/W": RNG.normal(size=(3, 4)).astype(np.float32),
    "params/half": RNG.normal(size=(5,)).astype(ml_dtypes.bfloat16),
    "params/ieee_half": RNG.normal(size=(2, 2)).astype(np.float16),
    "params/double": RNG.normal(size=(2,)),
    "batch_stats/count": np.array(7, np.int32),
    "flags": np.array([True, False, True]),
    "nothing": np.zeros((0, 3), np.int8),
    "transposed": np.arange(6, dtype=np.int64).reshape(2, 3).T,
    "big_endian": np.arange(3, dtype=">f4"),
}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name].dtype == value.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_tensors_come_back_as_they_were(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensor_files.to_bytes(TENSORS))
    assert_same(TENSORS, safetensor_files.read([path], half=True))
    widened = safetensor_files.read([path])
    assert widened["params/half"].dtype == widened["params/ieee_half"].dtype == np.float32


def test_the_package_safetensors_reads_what_is_written_and_writes_what_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="needs jaxeff[text]")
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensor_files.to_bytes(TENSORS))
    plain = {name: v for name, v in TENSORS.items() if v.dtype != ml_dtypes.bfloat16}
    theirs = library.load(safetensor_files.to_bytes(plain))
    assert_same(plain, theirs)
    half = {"half": TENSORS["params/half"]}
    [(name, stored)] = safetensors.deserialize(safetensor_files.to_bytes(half))
    assert (name, stored["dtype"], stored["shape"]) == ("half", "BF16", [5])
    assert bytes(stored["data"]) == half["half"].tobytes()
    contiguous = {n: np.ascontiguousarray(v, v.dtype.newbyteorder("=")) for n, v in plain.items()}
    library.save_file(contiguous, path)
    assert_same(plain, safetensor_files.read([path], half=True))


def test_a_type_that_the_format_lacks_is_named():
    with pytest.raises(DataError, match="phase is of type complex64, which safetensors does not"):
        safetensor_files.to_bytes({"phase": np.zeros(2, np.complex64)})


def test_files_outside_the_folder_are_not_looked_at(tmp_path):
    saved_folder.write(tmp_path / "folder", {}, {"a": np.zeros(1)}, {})
    config = (tmp_path / "folder/config.json").read_text()
    (tmp_path / "folder/config.json").write_text(config.replace("model.safe", "../model.safe"))
    with pytest.raises(DataError, match=r"was changed, or is not of the same model"):
        saved_folder.read_config(tmp_path / "folder")
