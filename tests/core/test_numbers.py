from __future__ import annotations

import numpy as np
import pytest
import torch

from raysel.core.numbers import plain, whole
from raysel.errors import ConfigError


def test_numbers_of_other_libraries_become_those_of_python():
    found = [
        np.int64(3),
        np.uint8(3),
        np.float32(0.5),
        np.bool_(True),
        np.str_("a"),
        np.array(3),
        torch.tensor(3),
    ]
    assert list(map(repr, map(plain, found))) == ["3", "3", "0.5", "True", "'a'", "3", "3"]
    array = np.arange(2)
    assert plain(array) is array and plain("a") == "a" and plain(None) is None


def test_whole_numbers():
    for value in (2, np.int8(2), np.uint64(2), torch.tensor(2), np.array(2)):
        assert (found := whole("rows", value, 1)) == 2 and type(found) is int
    assert whole("seed", -3) == -3
    for value in (0, True, np.True_, 2.0, np.float64(2), "2", None, [2], float("nan")):
        with pytest.raises(ConfigError, match=r"^rows must be a whole number of at least 1, got "):
            whole("rows", value, 1)
    with pytest.raises(
        ConfigError, match=r"^seed must be a whole number, got a numpy ndarray of shape \(2,\)\.$"
    ):
        whole("seed", np.arange(2))
