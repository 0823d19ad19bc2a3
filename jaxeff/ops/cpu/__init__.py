"""CPU forms: variants of functions that XLA compiles to faster CPU code (`jaxeff.ops.platforms`).

XLA's CPU compiler fuses element-wise operations into one loop. Where that loop reads intermediate
values at shifted positions, it recomputes them for every shift; where it does not fuse, whole
batches of intermediate values go through memory. Its grouped convolution is scalar code, and a
dilated convolution multiplies the inserted zeros. The forms here avoid that;
``benchmarks/cnn_speed.py`` compares the convolutions with XLA's.

A form has the name, signature and results of its reference. Most have a custom reverse-mode
derivative, so forward mode works only under `jaxeff.ops.forward_mode`.
"""
