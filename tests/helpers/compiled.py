"""Flax modules run as one program each; operation by operation they are dozens of small ones."""

import jax


def init(module, *args):
    return jax.jit(module.init)(jax.random.key(0), *args)


def apply(module, variables, *args, **options):
    return jax.jit(lambda v, *a: module.apply(v, *a, **options))(variables, *args)
