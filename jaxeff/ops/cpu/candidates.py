"""Number of candidates of a pose search that are computed together."""


def candidates_at_once(total: int) -> int:
    """Returns the number of candidates whose activations fit a processor's cache together."""
    return min(total, 32)
