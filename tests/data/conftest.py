import socket

import numpy as np
import pytest

from jaxeff import data
from jaxeff.data.base import ArraySplit


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A data set that is not there must be an error at once, never a download."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def data_dir(monkeypatch, shared_dir):
    """The digits are prepared once for all tests, and never in the user's cache."""
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(shared_dir))
    return shared_dir


@pytest.fixture
def make_split():
    """Images whose every byte of example ``i`` is ``i``, so that a batch shows its indices."""

    def make(examples, view="", **options):
        images = np.broadcast_to(
            np.arange(examples, dtype=np.uint8)[:, None, None, None], (examples, 4, 3, 2)
        )
        viewer = data.VIEWS[view](**options) if view else None
        ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
        labels = np.arange(examples, dtype=np.int32)
        return ArraySplit(images, labels, np.arange(examples), ones, zeros, viewer)

    return make
