"""Distillation of logits and features, the baselines of selective distillation.

Functions of logits ``[batch, classes]``, labels ``[batch]`` and features ``[batch, ...]`` to losses
``[batch]``, whose mean over the batch is what the papers minimise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxeff.arguments import require
from jaxeff.typing import Array


def divergence(log_p: Array, log_q: Array) -> Array:
    """Returns ``KL(p || q)`` over the last axis, of logarithms of probabilities."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def kd(student: Array, teacher: Array, temperature: float = 4.0) -> Array:
    """``tau^2 KL(softmax(t / tau) || softmax(s / tau))``, summed over the classes.

    Its mean over the batch is PyTorch's "batchmean"; averaging over the classes too would divide
    the loss by their number. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
    2015.

    Raises:
      ConfigError: a temperature that is not positive.
    """
    require("temperature", temperature, "(0, inf)")
    softened = [jax.nn.log_softmax(z / temperature, axis=-1) for z in (teacher, student)]
    return temperature**2 * divergence(*softened)


def dkd(
    student: Array,
    teacher: Array,
    labels: Array,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Array:
    """``tau^2 (alpha TCKD + beta NCKD)``.

    TCKD is the divergence between the binary distributions (label, not label), NCKD that among the
    other classes. Plain `kd` is alpha = 1 and beta = the teacher's softened probability of the
    other classes, example by example. Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022,
    equation 7.

    Raises:
      ConfigError: a temperature that is not positive.
    """
    require("temperature", temperature, "(0, inf)")
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    target = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)

    def parts(logits: Array) -> tuple[Array, Array]:
        log_p = jax.nn.log_softmax(logits / temperature, axis=-1)
        of_target = jnp.sum(jnp.where(target, log_p, 0), axis=-1)
        others = jax.nn.logsumexp(jnp.where(target, -jnp.inf, log_p), axis=-1)
        among = jnp.where(target, 0, log_p - others[:, None])
        return jnp.stack([of_target, others], axis=-1), among

    (binary_t, among_t), (binary_s, among_s) = parts(teacher), parts(student)
    others = jnp.sum(jnp.where(target, 0, jnp.exp(among_t) * (among_t - among_s)), axis=-1)
    return temperature**2 * (alpha * divergence(binary_t, binary_s) + beta * others)


def hint(student: Array, teacher: Array) -> Array:
    """Mean squared difference of features ``[batch, ...]`` of one shape.

    FitNet (Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3) compares the
    teacher's features with a linear map of the student's, a 1x1 convolution on maps; SimKD (Chen et
    al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, equation 2) with
    the projection that is then part of the student, which keeps the teacher's classifier.

    Raises:
      ValueError: the shapes differ.
    """
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features {student.shape[1:]} must have the shape of the teacher's "
            f"{teacher.shape[1:]}"
        )
    return jnp.square(student - teacher).reshape(len(student), -1).mean(-1)
