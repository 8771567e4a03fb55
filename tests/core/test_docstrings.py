"""Reading docstrings in NumPy style."""

from __future__ import annotations

from raysel.core.docstrings import parameters, summary


class Documented:
    """Do one thing.

    More about it: with a colon.

    Parameters
    ----------
    first : int
        One line.
    low, high : float, optional
        Two
        lines.

        Another paragraph.
    bare
        Without a type.

    A closing remark, and more.

    Raises
    ------
    ValueError
        Never.

    Attributes
    ----------
    made : str
        An attribute.
    """


class Undocumented(Documented):
    pass


def test_the_summary_is_the_first_line():
    assert summary(Documented) == "Do one thing."
    assert summary(Undocumented) == "" and parameters(Undocumented) == {}


def test_parameters_and_attributes_are_found_and_nothing_else():
    assert parameters(Documented) == {
        "first": "One line.",
        "low": "Two lines.",
        "high": "Two lines.",
        "bare": "Without a type.",
        "made": "An attribute.",
    }
