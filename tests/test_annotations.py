"""Values of a config against the annotations of what takes them."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxeff.annotations import check_types, parameters
from jaxeff.errors import ConfigError


def build(
    whole: int = 0,
    real: float = 0.0,
    text: str = "",
    truth: bool = False,
    sizes: Sequence[int] = (),
    pair: tuple[float, float] = (0.0, 0.0),
    many: tuple[int, ...] = (),
    section: Mapping[str, Any] | None = None,
    maybe: int | None = None,
    either: str | Sequence[float] = "",
    nested: Sequence[Mapping[str, Any]] = (),
    grid: Sequence[tuple[int, int]] = (),
    other: Callable[[int], int] | None = None,
    loose=3,
    nothing: str = None,  # noqa: RUF013  (as older code has it)
):
    """Takes one value of each kind."""


@dataclasses.dataclass
class Data:
    whole: int
    real: float = 0.0


class Layer(nn.Module):
    whole: int
    sizes: Sequence[int] = ()
    dtype: Any = jnp.float32


class Base:
    def __init__(self, *, whole: int = 0):
        pass


class Derived(Base):
    def __init__(self, *, real: float = 0.0, **options: Any):
        super().__init__(**options)


RIGHT = [
    ("whole", 3), ("whole", np.int64(3)), ("real", 3), ("real", np.float32(3)), ("text", "x"),
    ("truth", True), ("truth", np.bool_(False)), ("sizes", [1, 2]), ("sizes", (1,)), ("sizes", ()),
    ("pair", [1, 2.5]), ("many", [1, np.int8(2)]), ("section", {}), ("section", None),
    ("section", ml_collections.ConfigDict()), ("maybe", None), ("maybe", 3), ("either", "x"),
    ("either", [1, 2.0]), ("nested", [{}]), ("grid", [(1, 2)]), ("other", "anything"),
    ("loose", "anything"), ("nothing", None), ("unknown", 3),
]  # fmt: skip
WRONG = [
    ("whole", "3", "a whole number, not '3'"),
    ("whole", 3.0, "a whole number, not 3.0"),
    ("whole", True, "a whole number, not True"),
    ("whole", None, "a whole number, not None"),
    ("whole", (3,), r"a whole number, not \(3,\)"),
    ("real", "0.1", "a number, not '0.1'"),
    ("real", False, "a number, not False"),
    ("text", 3, "text, not 3"),
    ("truth", 1, "true or false, not 1"),
    ("truth", "yes", "true or false, not 'yes'"),
    ("sizes", 3, "a list of whole numbers, not 3"),
    ("sizes", "12", "a list of whole numbers, not '12'"),
    ("sizes", [1, 2.5], r"a list of whole numbers, not \[1, 2.5\]"),
    ("pair", ["a", 1], "a list of numbers"),
    ("many", 3, "a list of whole numbers"),
    ("section", "x", "a section of fields or None, not 'x'"),
    ("maybe", "x", "a whole number or None, not 'x'"),
    ("either", 3, "text or a list of numbers, not 3"),
    ("nested", {}, "a list of sections, not {}"),
    ("nested", ["x"], r"a list of sections, not \['x'\]"),
    ("grid", 3, "a list, not 3"),
]


def postponed(function):
    """The function with its annotations as text, as ``from __future__ import annotations`` does."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    texts = {a.arg: a.annotation and ast.unparse(a.annotation) for a in tree.args.args}
    signature = inspect.signature(function)
    changed = [
        p.replace(annotation=texts[p.name] or p.empty) for p in signature.parameters.values()
    ]

    def copy(**fields):
        return function(**fields)

    copy.__signature__ = signature.replace(parameters=changed)
    return copy


@pytest.fixture(scope="module", params=[build, postponed(build)], ids=["types", "text"])
def factory(request):
    return request.param


@pytest.mark.parametrize(("name", "value"), RIGHT)
def test_right_values_pass(factory, name, value):
    check_types(factory, {name: value}, "part")


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_wrong_values_are_named_with_what_is_wanted(factory, name, value, words):
    with pytest.raises(ConfigError, match=rf"^config\.part\.{name} must be {words}"):
        check_types(factory, {name: value}, "part")


@pytest.mark.parametrize("made", [Data, Layer, Derived])
def test_classes_are_read_like_functions(made):
    check_types(made, {"whole": 3}, "part")
    with pytest.raises(ConfigError, match=r"config\.part\.whole must be a whole number, not 'x'"):
        check_types(made, {"whole": "x"}, "part")


def test_a_class_takes_the_fields_of_the_one_before_it():
    assert [*parameters(Derived)[0]] == ["real", "whole"]
    assert parameters(Derived)[1] is False
    assert parameters(lambda **fields: None)[1] is True


def test_long_values_are_shortened():
    with pytest.raises(ConfigError) as error:
        check_types(build, {"whole": "x" * 1000}, "part")
    assert len(str(error.value)) < 150
