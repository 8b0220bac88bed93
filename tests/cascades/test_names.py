import pytest

import jaxsim.cascades as jc


@pytest.mark.parametrize(
    ("old", "new"),
    [("LabelledGraph", "LabeledGraph"), ("LabelledCascades", "LabeledCascades")],
)
def test_an_old_name_is_the_new_one_and_warns(old, new):
    with pytest.warns(DeprecationWarning, match=f"now called {new}"):
        assert getattr(jc, old) is getattr(jc, new)


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        jc.no_such_name  # noqa: B018
