"""Names of version 0.1 are found for a while, and say what they are now."""

import pytest

from jaxeff import ode, ops, train


def test_the_cell_of_elman():
    with pytest.warns(DeprecationWarning, match=r"jaxeff\.ode\.RNN is jaxeff\.ode\.Elman now"):
        assert ode.RNN is ode.Elman


@pytest.mark.parametrize("name", ["anchors", "convolution", "strided", "tiles"])
def test_operations_on_arrays(name):
    with pytest.warns(DeprecationWarning, match=rf"jaxeff\.ode\.{name} is jaxeff\.ops\.{name} now"):
        assert getattr(ode, name) is getattr(ops, name)


def test_the_job_of_training():
    from jaxeff.train import jobs

    assert jobs.run is train.run


def test_what_is_no_alias_says_what_to_write():
    with pytest.raises(AttributeError, match="FusedCell now, with other methods"):
        ode.ProductCell
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ode.nothing
