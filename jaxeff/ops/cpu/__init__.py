"""Forms of functions that XLA compiles to something faster on CPUs; see `jaxeff.ops.platforms`.

XLA's CPU compiler makes one loop of everything elementwise. Where such a loop reads its
intermediate values at shifted places, it computes them again for every shift, and where it does not
make one loop, whole batches of intermediate values go through memory. Its grouped convolution
visits memory value by value, and it multiplies the zeros of a dilated one. What is written here
avoids that; ``benchmarks/cnn_speed.py`` compares the convolutions with XLA's own.

A form has the name, signature and results of its reference. Most have a reverse-mode derivative of
their own, so that they cannot be differentiated in forward mode but under
`jaxeff.ops.forward_mode`.
"""
