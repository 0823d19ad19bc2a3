"""How many candidates of a search are computed together."""


def candidates_at_once(total: int) -> int:
    """Returns so many that their activations fit a processor's cache together."""
    return min(total, 32)
