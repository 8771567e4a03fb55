"""A saved state with any byte changed, or cut at any place, is refused with the file's name."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from raysel.errors import StateError
from raysel.gime import State, partial


def saved(table, full, path, rows):
    state = partial(table(0, rows), full, "file")
    state.save(path)
    return state, path.read_bytes()


def check(path, content, state):
    """The state is the same, where a byte that nothing depends on was changed, or refused."""
    path.write_bytes(content)
    try:
        assert State.load(path).digest() == state.digest()
        return True
    except StateError as error:
        assert str(error).startswith(f"{path}: ") and str(error).endswith(".")
        assert len(str(error).splitlines()) == 1
        return False


def damage(table, full, path, rows, trials):
    state, content = saved(table, full, path, rows)
    assert check(path, content, state)
    rng = random.Random(0)
    unnoticed = 0
    for _ in range(trials):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 64))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        unnoticed += check(path, bytes(changed), state)
        assert not check(path, content[: rng.randrange(len(content))], state)
    return unnoticed / trials


def test_a_damaged_state_is_refused(table, full, tmp_path):
    damage(table, full, tmp_path / "state.arrow", 40, 100)


@pytest.mark.slow
def test_many_damaged_states_are_refused(table, full, tmp_path):
    damage(table, full, tmp_path / "state.arrow", 400, 4_000)


@pytest.mark.parametrize("change", ["groups", "kinds", "by", "binding", "sizes", "digest", "format"])
def test_metadata_of_other_types_is_refused(table, full, tmp_path, change):
    state = partial(table(0, 9), full)
    good = state.to_arrow()
    for text in (
        b"",
        b"3",
        b"[]",
        b"{}",
        b"null",
        b"[[1]]",
        b"\xff",
        b"[" * 100_000,
        b'{"window_ns": 1e999}',
    ):
        metadata = {**good.schema.metadata, f"raysel.{change}".encode(): text}
        if metadata == good.schema.metadata:
            continue
        with pytest.raises(StateError):
            State.from_arrow(good.replace_schema_metadata(metadata))
    with pytest.raises(
        StateError, match=r"A state of the GIME metrics is read from an Arrow table, not from \[1\]"
    ):
        State.from_arrow([1])
    with pytest.raises(StateError):
        State.from_arrow(pa.table({"x": [1, 2]}).replace_schema_metadata(good.schema.metadata))
