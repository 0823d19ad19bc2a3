"""Ports of the loopback for processes that meet each other."""

import socket


def free_port():
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
