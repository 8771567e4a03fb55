"""Budgets: what they mean, what is written in place of those that are none."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.core.budgets import budget_of, budget_rows, check_budget, parse_bytes
from raysel.errors import ConfigError


@pytest.mark.parametrize("budget", [1, np.int64(1)])
def test_one_may_mean_a_row_or_all_rows_so_that_both_have_their_spelling(budget):
    with pytest.raises(
        ConfigError, match=r"^budget: 1 can mean one row or all rows\. Write 1\.0 .* 1e-09 for one row"
    ):
        check_budget(budget)
    assert budget_rows(1.0, 100) == 100 and budget_rows(1e-9, 100) == 1
    assert [budget_rows(budget_of(rows), 10**8) for rows in (1, 2, 100)] == [1, 2, 100]


def test_a_budget_is_a_share_or_a_number_of_rows():
    given = [(0.3, 30), (1.0, 100), (100, 100), (0.001, 1), (1e-9, 1), (0.005, 1)]
    given += [(np.float32(0.5), 50), (np.int64(3), 3), (np.uint8(7), 7), (np.array(0.5), 50)]
    assert [budget_rows(budget, 100) for budget, _ in given] == [rows for _, rows in given]
    assert type(check_budget(np.float32(0.5))) is float and type(check_budget(np.int64(3))) is int
    with pytest.raises(
        ConfigError, match="budget: 101 rows are more than the 100 rows of the pool; select fewer"
    ):
        budget_rows(101, 100)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("30%", r"'30%' is not a budget\. Write 0\.3 for 30 % of the rows\.$"),
        ("30 %", r"'30 %' is not a budget\. Write 0\.3 for 30 % of the rows\.$"),
        ("0.3", r"'0\.3' is not a budget\. Write 0\.3 without quotes for a share of the rows\.$"),
        ("100", r"'100' is not a budget\. Write 100 without quotes for a number of rows\.$"),
        ("200%", r"'200%' is not a budget\. Write a share"),
        ("200MB", r"'200MB' is not a budget\. Write a share of the rows such as 0\.3, or a number of rows such as 1000\.$"),
        ("", "'' is not a budget"),
        (1.5, r"1\.5 is not a share in \(0, 1\]\. Write 0\.015 for 1\.5 % of them, or a number of rows as an integer, such as 2\.$"),
        (30.0, r"30\.0 is not a share in \(0, 1\]\. Write 0\.3 for 30 % of them, or a number of rows as an integer, such as 30\.$"),
        (1000.0, r"1000\.0 is not a share in \(0, 1\]\. Write a number of rows as an integer, such as 1000\.$"),
        (0.0, r"0\.0 is not a share in \(0, 1\]"),
        (-0.1, r"-0\.1 is not a share"),
        (float("nan"), "nan is not a share"),
        (float("inf"), "inf is not a share"),
        (np.float32("nan"), "nan is not a share"),
        (0, "0 rows are too few; select at least 1"),
        (-3, "-3 rows are too few"),
        (True, "True is not a budget"),
        (np.True_, "True is not a budget"),
        (None, "None is not a budget"),
        ([0.3], r"\[0\.3\] is not a budget"),
        (np.array([0.3, 0.2]), r"a numpy ndarray of shape \(2,\) is not a budget"),
        (float, "the class float is not a budget"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_answered_with_what_to_write(budget, says):
    with pytest.raises(ConfigError, match=f"^budget: {says}"):
        budget_rows(budget, 100)


def test_bytes():
    texts = ["200MB", "1.5 GiB", "800 kB", "1B", " 2tib "]
    assert [parse_bytes(t) for t in texts] == [200_000_000, 3 * 2**29, 800_000, 1, 2**41]
    assert check_budget("1.5 GiB", in_bytes=True) == "1.5 GiB"
    assert parse_bytes("0.29KB") == 290  # as a product of floats, it is 289.99999999999994
    large = "9" * 400 + "MB"  # more than a float holds
    assert check_budget(large, in_bytes=True) == large and parse_bytes(large) > 10**400
    for text in ("200", "0B", "0.1B", "MB", "-1MB", "1e3MB", "20 bytes", "30%", "１MB"):
        with pytest.raises(ConfigError, match=r"budget: .* is not a number of bytes. Write "):
            parse_bytes(text)
        with pytest.raises(ConfigError, match=r"^budget: .* is not a budget. Write "):
            check_budget(text, in_bytes=True)
