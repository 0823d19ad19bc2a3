"""The folders of examples build and classify."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and cc"
)
def test_the_cmake_example_tells_gestures_apart(tmp_path):
    spec = importlib.util.spec_from_file_location("generate", EXAMPLES / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    shutil.copytree(EXAMPLES / "cmake", tmp_path / "cmake")
    generate.main(tmp_path / "cmake", steps=60)
    build = tmp_path / "build"
    for command in (["-S", tmp_path / "cmake", "-B", build], ["--build", build]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    raw, labels = generate.gestures(12, seed=2)
    names = [
        subprocess.run(
            [build / "classify"],
            input="\n".join(" ".join(map(str, row)) for row in series),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for series in raw
    ]
    right = sum(name == generate.CLASSES[label] for name, label in zip(names, labels, strict=True))
    assert right >= 10
