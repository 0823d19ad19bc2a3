"""The compiled library on this machine."""

import os
import shutil

import pytest

from jaxeff.ops.cpu.native import library


def test_a_machine_with_a_compiler_has_the_library():
    """A source that does not compile would only skip the tests of all that is compiled."""
    if os.environ.get(library.VARIABLE) == "never":
        pytest.skip("JAXEFF_NATIVE=never")
    if not any(map(shutil.which, library.COMPILERS)):
        pytest.skip("no C++ compiler")
    assert library.build().exists()
