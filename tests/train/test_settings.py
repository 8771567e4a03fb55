"""Settings of a training: elastic workers take the rows of a step together, however many of them there are."""

from __future__ import annotations

import numpy as np
import pytest

from raysel.dynamic.plan import batches
from raysel.errors import ConfigError
from raysel.train.settings import Train


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_has_the_same_rows_for_any_number_of_workers_that_divides_its_batches(accumulate):
    settings = Train(workers=[1, 4], batch_size=8, accumulate=accumulate)
    assert settings.fewest_workers == 1 and settings.most_workers == 4
    assert settings.batches(4) == (8, accumulate)

    def rows_of_steps(world):
        size, each = settings.batches(world)
        found = [batches(1000, size, rank, world, 3, 1, accumulate=each) for rank in range(world)]
        steps = np.stack([part.reshape(-1, each * size) for part in found], axis=1)
        return [sorted(step[step >= 0].tolist()) for step in steps.reshape(len(steps), -1)]

    assert rows_of_steps(1) == rows_of_steps(2) == rows_of_steps(4)
    assert (
        rows_of_steps(4)[0] == sorted(set(rows_of_steps(4)[0]))
        and len(rows_of_steps(4)[0]) == 32 * accumulate
    )
    size, each = settings.batches(3)  # which does not divide: less than a row more per batch
    assert 32 * accumulate <= 3 * size * each < 32 * accumulate + 3 * each


def test_a_fixed_number_of_workers_is_both_its_smallest_and_largest():
    settings = Train(workers=3, batch_size=8, accumulate=2)
    assert (settings.fewest_workers, settings.most_workers, settings.batches(3)) == (3, 3, (8, 2))


@pytest.mark.parametrize("workers", [[1], [4, 1], [0, 2], [1, 2, 3], []])
def test_what_is_no_range_of_workers(workers):
    with pytest.raises(
        ConfigError, match="is neither one number of workers nor a smallest and a largest one; give a number"
    ):
        Train(workers=workers)
