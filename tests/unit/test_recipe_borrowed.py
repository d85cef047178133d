"""Values as TOML in one line."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.recipe.borrowed import inline_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


@given(value=VALUES)
def test_inline_text_is_the_same_value_in_one_line(value):
    """Any value that a recipe can hold is read back as it was."""
    text = inline_text(value)
    assert "\n" not in text
    assert tomllib.loads(f"v = {text}")["v"] == value
