"""Models of symbols have vectors for all that their data can hold."""

import jax
import jax.numpy as jnp
import pytest

from jaxeff.errors import ConfigError
from jaxeff.models import MODELS
from jaxeff.models.base import check_symbols
from jaxeff.train import base_config, experiment

SHAPE = {"vocabulary": 10, "width": 8, "layers": 1, "heads": 2, "hidden": 8, "positions": 16}
ENCODER = {"name": "encoder", "shape": SHAPE}
SEQUENCE = {"name": "sequence", "cell": {"name": "gru", "features": 4}}


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (ENCODER, 10),
        ({"name": "encoder_supernet", "shape": {**SHAPE, "layers": 2}}, 10),
        (SEQUENCE, 7),
        ({**SEQUENCE, "vocabulary": 12}, 12),
        ({"name": "selecting", "hidden": 4, "backbone": ENCODER}, 10),
    ],
)
def test_a_vocabulary_beyond_the_table_is_refused_with_both_sizes(model, rows):
    built = MODELS.build(model, num_outputs=7)
    check_symbols(built, rows, "letters")
    with pytest.raises(ConfigError, match=rf"{rows} tokens, .* 'letters' .* of {rows + 1}; give"):
        check_symbols(built, rows + 1, "letters")


def test_token_types_need_a_model_that_reads_them():
    check_symbols(MODELS.build(ENCODER, num_outputs=7), 10, "pairs", typed=True)
    with pytest.raises(ConfigError, match=r"'pairs' has pairs of texts .*name='encoder'"):
        check_symbols(MODELS.build(SEQUENCE, num_outputs=7), 7, "pairs", typed=True)


def test_a_sequence_model_of_few_classes_reads_many_words():
    model = MODELS.build({**SEQUENCE, "vocabulary": 12}, num_outputs=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
    assert variables["params"]["Embed_0"]["embedding"].shape == (12, 64)
    with pytest.raises(ConfigError, match="vocabulary must be a whole number of at least 0"):
        MODELS.build({**SEQUENCE, "vocabulary": -1}, num_outputs=2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary": 5}, "table of 5 tokens, but data 'text' has a vocabulary of 7"),
        ({"positions": 8}, "10 tokens are more than the encoder's 8"),
    ],
)
def test_training_is_refused_before_anything_is_compiled(tmp_path, change, words):
    (tmp_path / "text").write_text("abcdef" * 100)
    config = base_config()
    config.name = "symbols"
    config.data.name = "text"
    config.data.update({"file": str(tmp_path / "text"), "window": 10})
    config.model = {**ENCODER, "shape": {**SHAPE, **change}}
    config.train.batch_size, config.train.num_steps = 8, 1
    with pytest.raises(ConfigError, match=words):
        experiment.build(config)
