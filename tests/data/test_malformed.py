"""Files that are damaged, hostile or of another kind: each is one sentence that names it."""

import bz2
import gzip
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data import idx, mnist_5k, snippets, tokens
from jaxeff.data.decode import resized
from jaxeff.data.series_files import read_ts
from jaxeff.data.text import read_bible, read_text
from jaxeff.data.voxelise import read_mesh
from jaxeff.errors import UserError
from jaxeff.files import paths, reading
from jaxeff.hub import safetensor_files
from jaxeff.hub.model_folder import locate
from jaxeff.serving import TextModel


def image(path):
    return resized(str(path), 4, lambda w, h: (0, 0, w, h))


def images(path):
    return idx.read_idx(path, 3)


def npz(path):
    return reading.read_npz(path, 1 << 20)


def served(path):
    return TextModel.load(path.parent)


def chunk(kind, content):
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width, height, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + rows + chunk(b"IEND", b"")


def idx_header(*shape):
    return struct.pack(f">I{len(shape)}I", 0x800 + len(shape), *shape)


def npy(shape, content=b"", kind="<f4"):
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def archive(content, name="a.npy"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, content)
    return out.getvalue()


def ts(header, line="1,2:a"):
    return f"{header}\n@classLabel true a\n@data\n{line}\n".encode()


DEEP = b"[" * 200_000
MODEL = {"dataset": {"class_names": ["a"]}, "digests": {}, "model": {"name": "encoder"}}
HUGE = {"vocabulary": 9, "width": 8, "layers": 10**7, "heads": 2, "hidden": 8}

LIMIT = 1 << 16

TABLE = [
    ("bomb.png", png(60_000, 60_000), image, "decompression bomb"),
    ("text bomb.png", png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))), image,
     "too large"),
    ("cut.png", png(64, 64)[:60], image, "cannot be read as an image"),
    ("short.png", png(64, 64), image, "truncated"),
    ("no.jpg", b"no image", image, "cannot identify"),
    ("empty.gif", b"", image, "cannot identify"),
    ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", image, "cannot identify"),
    ("absurd-idx3-ubyte", idx_header(2**32 - 1, 2**32 - 1, 2**32 - 1), images, "truncated, 0"),
    ("absurd-idx3-ubyte.gz", gzip.compress(idx_header(2**31, 2**10, 2**10)), images, "truncated"),
    ("bomb-idx3-ubyte.gz", gzip.compress(idx_header(1, 2, 2) + bytes(1 << 24)), images,
     "too long, 5 bytes of data for 1x2x2 = 4"),
    ("cut-idx3-ubyte.gz", gzip.compress(idx_header(1, 99, 99) + bytes(9801))[:-9], images,
     "compressed file is truncated"),
    ("floats-idx3", struct.pack(">4I", 0xD03, 1, 1, 1) + bytes(4), images, "bad magic number"),
    ("absurd.npz", archive(npy((10**12,))), npz, "claims 4000000000000 bytes"),
    ("bomb.npz", archive(npy((1 << 22,), bytes(1 << 24))), npz, "1048576 expected"),
    ("objects.npz", archive(npy((1,), kind="|O")), npz, "Python objects"),
    ("negative.npz", archive(npy((-1,))), npz, "cannot be read"),
    ("cut.npz", archive(npy((2,), bytes(8)))[:-30], npz, "cannot be read"),
    ("other.npz", archive(b"no array"), npz, "cannot be read"),
    ("bomb.csv.gz", gzip.compress(bytes(LIMIT + 9)), mnist_5k.read, f"more than the {LIMIT}"),
    ("letters.csv.gz", gzip.compress(b"a,b\n"), mnist_5k.read, "cannot be read"),
    ("wide.csv.gz", gzip.compress(b"300," * 784 + b"1"), mnist_5k.read, "no integer of 0 to 255"),
    ("one.csv.gz", gzip.compress(b"3," * 784 + b"1"), mnist_5k.read, "has 1 images"),
    ("absurd.ts", ts("@dimensions 999999999999"), read_ts, "has 1 channels, not 999999999999"),
    ("long.ts", ts("@equalLength true\n@seriesLength 99999999999"), read_ts, "2 steps, not the"),
    ("twice.ts", b"@classLabel true a a\n@data\n1:a\n", read_ts, "names a class twice"),
    ("binary.ts", bytes(range(256)), read_ts, "no line @data"),
    ("nan.ts", ts("", "1,nan:a"), read_ts, "missing value"),
    ("huge.ts", ts("", "1,1e999:a"), read_ts, "not a number"),
    ("large.ts", ts("", "1,1e39:a"), read_ts, "'1e39', too large for float32,"),
    ("absurd.off", b"OFF\n999999999 999999999 0\n0 0 0\n", read_mesh, "do not fit its"),
    ("none.off", b"", read_mesh, "does not begin with OFF"),
    ("words.off", b"OFF\nmany corners\n", read_mesh, "does not begin with OFF"),
    ("beyond.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n", read_mesh, "fetch it again"),
    ("nan.off", b"OFF\n3 1 0\n0 0 0\n1 nan 0\n0 1 0\n3 0 1 2\n", read_mesh, "fetch it again"),
    ("latin.txt", "é".encode("latin-1"), read_text, "is not UTF-8 text"),
    ("none.db", b"no data base", read_bible, "cannot be read"),
    ("list.json", b"[1]", tokens.load, "cannot be read"),
    ("deep.json", DEEP, tokens.load, "cannot be read"),
    ("number.json", b"1", tokens.load, "cannot be read"),
    ("words.json", b'{"model": {"type": "WordLevel", "vocab": [1]}}', tokens.load, "cannot be"),
    ("bomb.bz2", bz2.compress(bytes(LIMIT + 9)), snippets.read_reviews, f"more than {LIMIT}"),
    ("config.json", b"[1]", served, "no text model's config"),
    ("config.json", DEEP, served, "no text model's config"),
    ("config.json", b"\xff", served, "not UTF-8"),
    ("config.json", json.dumps({**MODEL, "dataset": None}).encode(), served, "no text model's"),
    ("config.json", json.dumps({**MODEL, "model": 3}).encode(), served, "no text model's config"),
    ("config.json", json.dumps({**MODEL, "model": {"name": "encoder", "shape": HUGE}}).encode(),
     served, "model.safetensors: cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "read", "words"), TABLE, ids=[f"{n} {i}" for i, (n, *_) in enumerate(TABLE)]
)
def test_a_damaged_file_is_one_sentence(tmp_path, monkeypatch, name, content, read, words):
    for module in (mnist_5k, snippets):
        monkeypatch.setattr(module, "MAX_BYTES", LIMIT)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    said = str(caught.value)
    assert words in said
    assert str(path) in said or "model.safetensors" in said
    assert "\n" not in said
    assert len(said) < 600


def test_more_layers_than_arrays_are_refused_at_once(tmp_path):
    config = {**MODEL, "model": {"name": "encoder", "shape": HUGE}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = safetensor_files.to_bytes({"a": np.zeros(1)})
    (tmp_path / "model.safetensors").write_bytes(tensors)
    with pytest.raises(UserError, match="1 arrays are too few for the 10000000 layers"):
        TextModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~nobody-of-this-name/data", "the home folder is not known; set HOME"),
        ("file", "is a file, not a folder of data"),
        ("file/below/it", "file is a file, not a folder of data"),
    ],
)
def test_places_that_are_no_folders(tmp_path, monkeypatch, name, words):
    (tmp_path / "file").touch()
    place = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        data.load("mnist", dir=place)
    assert "--config.data.dir" in str(caught.value)
    monkeypatch.setenv("JAXEFF_DATA_DIR", place)
    with pytest.raises(UserError, match=words) as caught:
        paths.data_dir()
    assert "JAXEFF_DATA_DIR" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "field", "options"),
    [
        ("copy", "length", {}),
        ("image_folder", "size", {}),
        ("digits", "padded_length", {"view": "noise_padded_rows"}),
        ("posed_images", "size", {}),
    ],
)
def test_sizes_beyond_the_memory_are_refused(name, field, options):
    with pytest.raises(UserError, match=rf"config\.data\.{field} asks for .* GiB, more than"):
        data.load(name, **options, **{field: 10**12})


def test_an_unknown_home_is_one_sentence(monkeypatch):
    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(paths.Path, "expanduser", unknown)
    monkeypatch.delenv("JAXEFF_DATA_DIR", raising=False)
    with pytest.raises(UserError, match=r"home folder is not known; .* JAXEFF_DATA_DIR"):
        paths.data_dir()


def test_models_are_fetched_only_where_that_was_asked_for(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(identifier, **options):
        asked.append((identifier, options["revision"], options["local_files_only"]))
        if options["local_files_only"]:
            raise FileNotFoundError("not here")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"set --config\.data\.download=True"):
        locate("owner/model@v1.0")
    assert locate("owner/model@v1.0", download=True) == tmp_path
    assert locate("owner/model", download=True) == tmp_path
    assert asked == [
        ("owner/model", "v1.0", True),
        ("owner/model", "v1.0", False),
        ("owner/model", None, False),
    ]
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="file is no folder"):
        locate("file", download=True)
