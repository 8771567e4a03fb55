"""SampleState: 8 bytes a sample, to Arrow and back, and clear refusal of anything damaged."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.dynamic import SampleState
from raysel.dynamic.state import observe
from raysel.errors import ConfigError, DataError, StateError


def state_of(loss: list[float], selected: list[int] | None = None) -> SampleState:
    counts = np.zeros(len(loss), np.int32) if selected is None else np.array(selected, np.int32)
    return SampleState(np.array(loss, np.float32), counts)


def same(a: SampleState, b: SampleState) -> bool:
    return a.loss.tobytes() == b.loss.tobytes() and a.selected.tobytes() == b.selected.tobytes()


SOME = state_of([0.5, np.nan, 2.0, 0.0], [3, 0, 2, 1])


def test_empty_is_unseen_and_eight_bytes_a_sample():
    state = SampleState.empty(1000)
    assert len(state) == 1000 and np.isnan(state.loss).all() and not state.selected.any()
    assert state.loss.nbytes + state.selected.nbytes == 8 * 1000
    assert len(SampleState.empty(0)) == 0


@pytest.mark.parametrize("n", [-1, 2.5, "3", True, None])
def test_empty_refuses_a_size_that_is_none(n):
    with pytest.raises(ConfigError, match="number of samples"):
        SampleState.empty(n)


@pytest.mark.parametrize(
    ("loss", "selected"),
    [
        (np.zeros(3), np.zeros(3, np.int32)),
        (np.zeros(3, np.float32), np.zeros(3, np.int64)),
        (np.zeros(3, np.float32), np.zeros(4, np.int32)),
        (np.zeros((3, 1), np.float32), np.zeros(3, np.int32)),
        ([0.0], [0]),
    ],
)
def test_wrong_arrays_are_refused(loss, selected):
    with pytest.raises(StateError):
        SampleState(loss, selected)


def test_a_state_cannot_be_written_to_and_leaves_the_callers_array_alone():
    mine = np.zeros(3, np.float32)
    state = SampleState(mine, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="read-only"):
        state.loss[0] = 1
    mine[0] = 1  # still the caller's


@given(
    st.lists(st.one_of(st.just(float("nan")), st.floats(width=32, allow_nan=False, allow_infinity=False))),
    st.data(),
)
@settings(deadline=None, max_examples=50)
def test_arrow_round_trip(losses, data):
    counts = data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(losses), max_size=len(losses)))
    state = state_of(losses, counts)
    assert same(SampleState.from_arrow(state.to_arrow()), state)


def test_round_trip_through_a_file_and_through_several_chunks():
    file = io.BytesIO()
    pq.write_table(SOME.to_arrow(), file, row_group_size=2)
    assert same(SampleState.from_arrow(pq.read_table(file)), SOME)
    table = SOME.to_arrow()
    parts = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert parts.column("loss").num_chunks == 2
    assert same(SampleState.from_arrow(parts), SOME)


def test_arrow_shares_the_memory_and_names_what_it_is():
    state = SampleState.empty(10_000)
    table = state.to_arrow()
    for name, values in [("loss", state.loss), ("selected", state.selected)]:
        _, data = table.column(name).chunk(0).buffers()
        assert data.address == values.ctypes.data  # a count of allocated bytes would see other threads' too
    assert table.schema.names == ["loss", "selected"]
    assert table.schema.metadata[b"raysel.format"] == b"sample-state/2"
    assert table.schema.metadata[b"raysel.samples"] == b"10000"


def damaged() -> dict[str, object]:
    table = SOME.to_arrow()
    metadata = table.schema.metadata
    changed = table.set_column(0, table.schema.field(0), pa.array([0.5, 0.5, 2, 0], pa.float32()))
    nulls = pa.table({"loss": pa.array([0.5, None, 2, 0], pa.float32()), "selected": table["selected"]})
    nulls = pa.Table.from_arrays(nulls.columns, schema=table.schema)
    return {
        "needs an Arrow table": {"loss": [1.0]},
        "not a selection state of raysel": table.replace_schema_metadata(None),
        "'sample-state/9'": table.replace_schema_metadata({**metadata, b"raysel.format": b"sample-state/9"}),
        "must have the columns": table.drop_columns("selected").replace_schema_metadata(metadata),
        "this table has loss double": table.set_column(0, "loss", pa.array([0.5, 1, 2, 0], pa.float64())),
        "has 3 samples, but its metadata records 4": table.slice(0, 3),
        "records no number of samples": table.replace_schema_metadata({b"raysel.format": b"sample-state/2"}),
        "nulls": nulls,
        "digest": changed,
    }


@pytest.mark.parametrize("sentence", list(damaged()))
def test_a_wrong_or_damaged_table_is_refused_in_a_sentence(sentence):
    with pytest.raises(StateError, match=sentence):
        SampleState.from_arrow(damaged()[sentence])


def test_digest_sees_every_change():
    digests = {
        SOME.digest(),
        state_of([0.5, np.nan, 2.0, 0.0], [3, 0, 2, 2]).digest(),
        state_of([0.5, 1.0, 2.0, 0.0], [3, 0, 2, 1]).digest(),
        state_of([0.5, np.nan, 2.0], [3, 0, 2]).digest(),
        SampleState.empty(4).digest(),
        SampleState.empty(0).digest(),
    }
    assert len(digests) == 6
    assert SOME.digest() == pickle.loads(pickle.dumps(SOME)).digest()


PLANNED = np.array([0, 2, 3])


def test_observe_worked_by_hand():
    after = observe(SOME, PLANNED, np.array([2, 3]), np.array([1.5, 0.25]))
    assert np.array_equal(after.loss, np.float32([0.5, np.nan, 1.5, 0.25]), equal_nan=True)
    assert after.selected.tolist() == [4, 0, 3, 2]
    assert SOME.selected.tolist() == [3, 0, 2, 1], "the state before is as it was"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_observe_keeps_the_old_loss_where_the_new_one_is_not_finite(bad):
    after = observe(SOME, PLANNED, np.array([0, 2]), np.array([bad, 7.0]))
    assert np.array_equal(after.loss, np.float32([0.5, np.nan, 7.0, 0.0]), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_observe_takes_any_float_type_and_read_only_arrays(dtype):
    slots, losses = np.array([0, 3]), np.array([0.5, 0.1], dtype)
    slots.flags.writeable = losses.flags.writeable = False
    after = observe(SOME, PLANNED, slots, losses)
    assert after.loss[3] == np.float32(dtype(0.1))


def test_observe_ema_mixes_only_what_had_been_seen():
    after = observe(SOME, PLANNED, np.array([0, 1, 2]), np.array([1.5, 3.0, np.nan]), ema=0.75)
    assert np.array_equal(after.loss, np.float32([0.75, 3.0, 2.0, 0.0]), equal_nan=True)


@pytest.mark.parametrize(
    ("slots", "losses", "sentence"),
    [
        ([0, 4], [1.0, 1.0], r"slots \(positions of samples\) are outside 0..3: 4.$"),
        ([0, -1], [1.0, 1.0], "-1. Remove padding"),
        ([9, 8, 7, 6, 5], [1.0] * 5, "9, 8, 7 and 2 more"),
        ([0, 1], [1.0], "with one loss per slot"),
        ([[0, 1]], [[1.0, 1.0]], "with one loss per slot"),
        ([0.0, 1.0], [1.0, 1.0], "integer type, got float64"),
        ([True, False], [1.0, 1.0], "integer type, got bool"),
        ([0, 1], [1, 1], "floating-point type"),
        ([0, 1], ["a", "b"], "floating-point type"),
    ],
)
def test_observe_refuses_what_cannot_be_used(slots, losses, sentence):
    with pytest.raises(DataError, match=sentence):
        observe(SOME, PLANNED, np.array(slots), np.array(losses))


def test_observe_refuses_a_plan_of_another_data_set():
    with pytest.raises(DataError, match="slots of the plan run from 2 to 4"):
        observe(SOME, np.array([2, 4]), np.array([2]), np.array([1.0]))


def test_nothing_observed_is_fine():
    assert observe(SOME, np.arange(0), np.array([]), np.array([])).digest() == SOME.digest()
