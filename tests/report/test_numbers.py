from __future__ import annotations

import pytest

from raysel.report import numbers


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "n/a"),
        (0.0, "0 %"),
        (-0.0001, "0 %"),
        (0.614, "61 %"),
        (0.034, "3.4 %"),
        (-0.12, "-12 %"),
        (-13.5, "-1,350 %"),
        (0.99999, "99.9 %"),  # something was spent
        (1.0, "100 %"),
    ],
)
def test_savings(share: float | None, text: str) -> None:
    assert numbers.saving(share) == text


def test_seconds_and_counts() -> None:
    values = [None, 0.0, 0.001, 0.042, 0.997, 4.25, 99.97, 1234.4]
    assert [numbers.seconds(value) for value in values] == [
        "n/a",
        "0",
        "<0.01",
        "0.04",
        "1.0",
        "4.2",
        "100",
        "1,234",
    ]
    counts = [None, 9_999, 12_345, 999_960, 3 * 10**11, 5 * 10**13]
    assert [numbers.compact(count) for count in counts] == [
        "n/a",
        "9,999",
        "12.3k",
        "1.0M",
        "300.0G",
        "50.0T",
    ]
