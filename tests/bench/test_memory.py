import jax
import jax.numpy as jnp
import pytest

from jaxeff.bench import compiled_memory

MATRIX = jax.ShapeDtypeStruct((256, 256), jnp.float32)
SIZE = 256 * 256 * 4


def two_products(x):
    """Needs at least one matrix between the products, whatever the compiler fuses."""
    return (x @ x) @ x


def test_bytes_of_a_program_with_a_known_temporary():
    memory = compiled_memory(two_products, MATRIX)
    assert memory["argument_bytes"] == SIZE
    assert memory["output_bytes"] == SIZE
    assert memory["alias_bytes"] == 0
    assert SIZE <= memory["temp_bytes"] < 4 * SIZE
    assert memory["step_bytes"] == 2 * SIZE + memory["temp_bytes"]


def test_residuals_of_a_scan_grow_with_its_length():
    def loss(x, length):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=length)[0].sum()

    def temp(length):
        return compiled_memory(jax.grad(lambda x: loss(x, length)), MATRIX)["temp_bytes"]

    assert temp(20) - temp(10) == pytest.approx(10 * SIZE, rel=0.01)


def test_donated_arguments_are_counted_once():
    memory = compiled_memory(jax.jit(lambda x: x + 1, donate_argnums=0), MATRIX)
    if not memory["alias_bytes"]:
        pytest.skip("this backend does not donate")
    assert memory["alias_bytes"] == SIZE
    assert memory["step_bytes"] == SIZE + memory["temp_bytes"]


def test_jitted_and_compiled_functions_are_taken_as_they_are():
    jitted = jax.jit(two_products)
    expected = compiled_memory(two_products, MATRIX)
    assert compiled_memory(jitted, MATRIX) == expected
    assert compiled_memory(jitted.lower(MATRIX).compile()) == expected


def test_none_where_the_backend_does_not_say():
    class Silent:
        def memory_analysis(self):
            return None

    class Refuses:
        def memory_analysis(self):
            raise NotImplementedError

    for compiled in (Silent(), Refuses()):
        assert set(compiled_memory(compiled).values()) == {None}
        assert "temp_bytes" in compiled_memory(compiled)
