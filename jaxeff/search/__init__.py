"""Search for shortened encoders: the space of plans, measured latencies, fronts and strategies."""
