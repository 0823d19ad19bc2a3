"""Rounding of kernels that makes up for itself: what a weight loses, later ones of its output take.

Rounding every weight to the nearest integer makes the smallest error of the weights. What matters
is the error of the products, and inputs of a kernel go together: a state's elements much more than
chance would have it. With the second moments of the inputs that error is a quadratic form of the
errors of the weights, which is lowered input by input, in closed form.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh. GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers. ICLR 2023. After B. Hassibi, D. Stork, Second Order Derivatives
for Network Pruning: Optimal Brain Surgeon, NeurIPS 1992.
"""

from __future__ import annotations

import numpy as np

#: Added to the moments' diagonal, in parts of its mean: inputs that hardly vary decide nothing.
DAMPING = 0.01


def compensated(kernel: np.ndarray, limit: int, moment: np.ndarray) -> np.ndarray:
    """Returns a kernel in whole numbers, whose products with typical inputs err little.

    Args:
      kernel: ``[inputs, outputs]`` in units of the scale of each output, float64.
      limit: greatest magnitude of a weight.
      moment: mean of the products of every two inputs, ``[inputs, inputs]``.
    """
    count = len(kernel)
    moment = np.asarray(moment, np.float64)
    strength = float(np.trace(moment)) / count
    if not strength > 0:
        return nearest(kernel, limit)
    damped = moment + DAMPING * strength * np.eye(count)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    rest, rounded = np.array(kernel, np.float64), np.empty(kernel.shape)
    for i in range(count):
        rounded[i] = nearest(rest[i], limit)
        error = (rest[i] - rounded[i]) / factor[i, i]
        rest[i + 1 :] -= np.outer(factor[i, i + 1 :], error)
    return rounded


def nearest(kernel: np.ndarray, limit: int) -> np.ndarray:
    """Returns the nearest whole numbers, halves upward, of at most that magnitude."""
    return np.clip(np.floor(kernel + 0.5), -limit, limit)
