import pytest

from jaxeff.errors import ConfigError, UserError
from jaxeff.registry import Registry, closest


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register("circle")
    def circle(radius, *, centre=(0, 0)):
        return "circle", radius, centre

    @registry.register("polygon")
    def polygon(**fields):
        return "polygon", fields

    return registry


def test_build_calls_the_named_factory(shapes):
    assert shapes.build({"name": "circle", "radius": 2}) == ("circle", 2, (0, 0))
    assert shapes.build({"name": "circle"}, radius=3, centre=(1, 1)) == ("circle", 3, (1, 1))


def test_build_leaves_the_section_as_it_is(shapes):
    section = {"name": "circle", "radius": 2}
    shapes.build(section)
    assert section == {"name": "circle", "radius": 2}


def test_register_returns_the_factory():
    def factory():
        return 1

    registry = Registry("thing")
    assert registry.register("x")(factory) is factory
    assert registry["x"] is factory


def test_names_are_sorted_and_known(shapes):
    assert list(shapes) == ["circle", "polygon"]
    assert "circle" in shapes
    assert "square" not in shapes


def test_name_registered_twice_is_refused(shapes):
    with pytest.raises(ValueError, match="shape 'circle' is registered twice"):
        shapes.register("circle")(lambda: None)
    assert shapes.build({"name": "circle", "radius": 1})[0] == "circle"


def test_unknown_name_suggests_the_nearest(shapes):
    with pytest.raises(ConfigError, match=r"unknown shape 'cirkle'; did you mean 'circle'\?"):
        shapes["cirkle"]
    with pytest.raises(
        ConfigError, match=r"config.canvas.name: unknown shape 'cirkle'; did you mean 'circle'\?"
    ):
        shapes.build({"name": "cirkle"}, "canvas")


def test_unknown_name_far_from_all_lists_the_choices(shapes):
    with pytest.raises(ConfigError, match="unknown shape 'xyz'; choose one of: circle, polygon"):
        shapes["xyz"]


def test_missing_name_lists_the_choices(shapes):
    with pytest.raises(ConfigError, match=r"config.shape needs a field 'name'.*circle, polygon"):
        shapes.build({"radius": 1})


def test_unknown_field_suggests_the_nearest(shapes):
    with pytest.raises(
        ConfigError,
        match=r"config.canvas.radios: shape 'circle' has no such field; did you mean 'radius'\?",
    ):
        shapes.build({"name": "circle", "radios": 1}, "canvas")


def test_suggestions_leave_out_what_a_config_cannot_set(shapes):
    with pytest.raises(ConfigError) as error:
        shapes.build({"name": "circle", "raduis": 1}, radius=1)
    assert "'radius'" not in str(error.value)


def test_factory_with_free_keywords_takes_any_field(shapes):
    assert shapes.build({"name": "polygon", "sides": 5}) == ("polygon", {"sides": 5})


def test_a_class_takes_the_fields_of_those_it_hands_them_on_to():
    class Shape:
        def __init__(self, *, color="red"):
            self.color = color

    class Named(Shape):
        pass

    class Round(Named):
        def __init__(self, *, radius=1.0, **options):
            super().__init__(**options)
            self.radius = radius

    shapes = Registry("shape")
    shapes.register("round")(Round)
    made = shapes.build({"name": "round", "radius": 2.0, "color": "blue"})
    assert (made.radius, made.color) == (2.0, "blue")
    with pytest.raises(ConfigError, match="'round' has no such field; did you mean 'color'"):
        shapes.build({"name": "round", "colour": "blue"})


def test_config_errors_are_user_errors_and_value_errors():
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


def test_closest_prefers_a_suggestion():
    assert closest("tahn", ["tanh", "relu"]) == "; did you mean 'tanh'?"
    assert closest("qqq", ["tanh", "relu"]) == "; choose one of: relu, tanh"
