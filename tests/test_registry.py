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
    with pytest.raises(ConfigError, match=r"config.shape needs a field 'name'"):
        shapes.build(None)


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


def test_a_cell_of_a_notebook_can_be_run_again(shapes):
    cell = "@shapes.register('square')\ndef square(side):\n    return {value}, side\n"
    for value in (1, 2):
        exec(cell.format(value=value), {"shapes": shapes, "__name__": "__main__"})
        assert shapes.build({"name": "square", "side": 5}) == (value, 5)
    other = cell.replace("def square", "def another").format(value=3)
    with pytest.raises(ValueError, match=r"'square' is registered twice, by __main__\.square and"):
        exec(other, {"shapes": shapes, "__name__": "__main__"})
    with pytest.raises(ValueError, match=r"by __main__\.square and by elsewhere\.square; give one"):
        exec(cell.format(value=3), {"shapes": shapes, "__name__": "elsewhere"})
    assert shapes.build({"name": "square", "side": 5}) == (2, 5)


def test_a_class_that_is_defined_again_replaces_itself(shapes):
    def define(value):
        @shapes.register("blob")
        class Blob:
            number = value

        return Blob

    first, second = define(1), define(2)
    assert first is not second
    assert type(shapes.build({"name": "blob"})) is second


def test_a_mistake_in_a_factory_is_told_with_its_place_and_cause(shapes):
    @shapes.register("broken")
    def broken(radius=1):
        return len(radius)

    line = broken.__code__.co_firstlineno + 2
    with pytest.raises(ConfigError) as error:
        shapes.build({"name": "broken"}, "canvas")
    text = str(error.value)
    assert text.startswith("config.canvas: shape 'broken' cannot be built: TypeError: object of ")
    assert text.endswith(f"(file {__file__}, line {line})".replace("file ", ""))
    assert "wrong type" not in text
    assert type(error.value.__cause__) is TypeError


def test_errors_for_the_user_and_the_machine_pass_unchanged(shapes):
    class Mine(UserError):
        pass

    for number, failure in enumerate((Mine("mend this"), OSError("no disk"), MemoryError())):

        @shapes.register(f"raising {number}")
        def raising(failure=failure):
            raise failure

        with pytest.raises(type(failure)) as error:
            shapes.build({"name": f"raising {number}"})
        assert error.value is failure


def test_what_the_program_gives_cannot_be_set(shapes):
    with pytest.raises(ConfigError, match=r"config\.canvas\.radius cannot be set"):
        shapes.build({"name": "circle", "radius": 1}, "canvas", radius=2)


def test_a_missing_field_is_named(shapes):
    with pytest.raises(ConfigError, match=r"config\.canvas: shape 'circle' needs a field 'radius'"):
        shapes.build({"name": "circle"}, "canvas")
