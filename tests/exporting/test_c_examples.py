"""The folders of examples build, classify, and compile for a board."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
STAND_INS = Path(__file__).parent / "arduino"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", EXAMPLES / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gestures(generate, tmp_path_factory):
    """Returns a folder with the generated model."""
    folder = tmp_path_factory.mktemp("gestures")
    generate.main(folder, steps=60)
    return folder


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and cc"
)
def test_the_cmake_example_tells_gestures_apart(generate, gestures, tmp_path):
    shutil.copytree(EXAMPLES / "cmake", tmp_path / "cmake")
    shutil.copytree(gestures, tmp_path / "cmake", dirs_exist_ok=True)
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


@pytest.mark.skipif(
    shutil.which("arm-none-eabi-g++") is None,
    reason="needs arm-none-eabi-g++ (Debian: gcc-arm-none-eabi)",
)
def test_the_sketch_compiles_for_the_board_s_processor(gestures, tmp_path):
    """Against stand-ins for Arduino's headers, with those warnings as errors that its IDE shows."""
    flags = ["-mcpu=cortex-m0plus", "-mthumb", "-Os", "-Wall", "-Wextra", "-Werror", "-c"]
    includes = [f"-I{gestures}", f"-I{STAND_INS}"]
    # Arduino's IDE puts its core's header before a sketch, and reads it as C++.
    sketch = ["-x", "c++", "-std=gnu++11", "-fno-exceptions", "-include", "Arduino.h"]
    sketch += [EXAMPLES / "arduino" / "gestures" / "gestures.ino", "-o", tmp_path / "sketch.o"]
    source = ["-std=c11", gestures / "gestures.c", "-o", tmp_path / "gestures.o"]
    for compiler, rest in (("arm-none-eabi-g++", sketch), ("arm-none-eabi-gcc", source)):
        run = subprocess.run([compiler, *flags, *includes, *rest], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    symbols = {
        name: subprocess.run(
            ["arm-none-eabi-nm", tmp_path / f"{name}.o"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in ("sketch", "gestures")
    }
    wanted = {line.split()[-1] for line in symbols["sketch"] if " U gestures_" in line}
    defined = {line.split()[-1] for line in symbols["gestures"] if " U " not in line}
    assert wanted
    assert wanted <= defined
