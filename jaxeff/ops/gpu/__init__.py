"""Forms for GPUs of what XLA compiles badly for them: kernels that keep a loop's state on chip."""
