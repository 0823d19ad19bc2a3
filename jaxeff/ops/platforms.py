"""The platform that a program is traced for, and alternative implementations for CPUs.

The functions of `jaxeff.ops` and `jaxeff.ode` are plain differentiable JAX. XLA compiles some of
them badly for CPUs; such a function declares a CPU form of the same signature::

    @has_cpu_form("jaxeff.ops.cpu.convolution")
    def conv(x, kernel, strides=1): ...

Programs traced for a CPU call ``jaxeff.ops.cpu.convolution.conv`` instead; all others use the
reference.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax

from jaxeff.errors import ConfigError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PLATFORMS = ("cpu", "gpu", "tpu", "reference")

#: References by the qualified names of their CPU forms.
CPU_FORMS: dict[str, Callable[..., object]] = {}

# Part of `jax.jit`'s cache key, so a function is traced again for another value.
_platform = jax.make_user_context(default_value=None)
_forward_mode = jax.make_user_context(default_value=False)
_reverse_mode = jax.make_user_context(default_value=False)


def current_platform() -> str:
    """Returns the platform that programs are traced for: JAX's default outside `platform`."""
    return _platform.value or jax.default_backend()


@contextlib.contextmanager
def platform(name: str) -> Iterator[None]:
    """Sets the platform for programs traced within the context.

    Args:
      name: "cpu", "gpu", "tpu", or "reference" for plain JAX on any platform, for programs that are
        exported, differentiated twice or in forward mode.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in PLATFORMS:
        raise ConfigError(f"platform must be one of {', '.join(PLATFORMS)}, not {name!r}")
    with _platform(name):
        yield


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Context for functions that are differentiated in forward mode: no custom reverse rules."""
    with _forward_mode(True):
        yield


def is_forward_mode() -> bool:
    """Returns whether tracing is within `forward_mode`."""
    is_set: bool = _forward_mode.value
    return is_set


@contextlib.contextmanager
def reverse_mode() -> Iterator[None]:
    """Context for the passes of a function whose derivative is taken in reverse mode."""
    with _reverse_mode(True):
        yield


def is_reverse_mode() -> bool:
    """Returns whether tracing is within `reverse_mode`, and not in `forward_mode`."""
    return _reverse_mode.value and not is_forward_mode()


def has_cpu_form(
    module: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Declares that a function has a CPU form, of the same name and signature.

    Args:
      module: that defines the CPU form; imported at the first call.
    """

    def declare(reference: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        CPU_FORMS[f"{module}.{reference.__name__}"] = reference

        @functools.wraps(reference)
        def chosen(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            if current_platform() != "cpu":
                return reference(*args, **kwargs)
            form = getattr(importlib.import_module(module), reference.__name__)
            result: Result = form(*args, **kwargs)
            return result

        return chosen

    return declare
