"""What hypothesis tries."""

from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters())
"""Halves of surrogate pairs too, which st.text() leaves out and JSON and headers can bring."""
