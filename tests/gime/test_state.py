"""States: any split and order of merging gives the same one to the last bit; files; what is refused."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysel.errors import ConfigError, DataError, StateError
from raysel.gime import (
    Binding,
    State,
    block,
    finalize,
    histograms,
    measure,
    merge,
    partial,
    parts,
    with_target,
)
from raysel.gime import state as rooms


@pytest.fixture
def small():
    """Sketches so small that a few rows overflow them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "KEYS", 8)
        patch.setattr(parts, "KEYS", 8)
        patch.setattr(histograms, "BINS", 70)
        yield


def split(data, rng, pieces):
    ends = np.sort(rng.integers(0, data.num_rows + 1, pieces - 1))
    return [data.slice(a, b - a) for a, b in zip([0, *ends], [*ends, data.num_rows], strict=True)]


def merged(states, rng):
    """In a random order, as a random tree."""
    states = list(states)
    while len(states) > 1:
        i, j = rng.choice(len(states), 2, replace=False)
        joined = merge(states[i], states[j])
        states = [s for k, s in enumerate(states) if k not in (i, j)] + [joined]
    return states[0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(0, 120),
    pieces=st.integers(1, 6),
    by=st.sampled_from([None, "file", "window"]),
)
@pytest.mark.usefixtures("small")
def test_no_split_or_order_changes_a_bit(table, full, seed, rows, pieces, by):
    rng = np.random.default_rng(seed)
    by = timedelta(days=3) if by == "window" else by
    binding = with_target(full, table(seed + 1, 40, 9))
    data = table(seed, rows, 9, 0.2)
    whole = partial(data, binding, by)
    found = merged([partial(part, binding, by) for part in split(data, rng, pieces)], rng)
    assert found.digest() == whole.digest()
    shuffled = data.take(pa.array(rng.permutation(rows)))
    assert partial(shuffled, binding, by).digest() == whole.digest()
    assert finalize(found).equals(finalize(whole), check_metadata=True)


@pytest.mark.usefixtures("small")
def test_sketches_were_in_use_above(table, full):
    data = table(0, 120, 9, 0.2)
    state = partial(data, with_target(full, table(1, 40, 9)))
    assert state.parts.keys["relation thread"].cut[0] and state.parts.keys["relation thread"].tug is not None
    assert state.parts.histograms["event"].level[0] >= 0


def test_merging_is_associative_and_commutative_and_has_an_identity(table, full):
    one, two, three = (partial(table(seed, 3000, 900, 0.1), full) for seed in range(3))
    assert one.parts.keys["relation thread"].sizes[0] > 1000
    left, right = merge(merge(one, two), three), merge(one, merge(two, three))
    assert left.digest() == right.digest() == merge(three, merge(two, one)).digest()
    assert left.parts.keys["relation thread"].sizes[0] <= rooms.KEYS
    nothing = partial(table(0, 0), full)
    assert merge(nothing, one).digest() == merge(one, nothing).digest() == one.digest()
    grouped, none = partial(table(0, 50), full, "file"), partial(table(0, 0), full, "file")
    assert none.groups == () and merge(grouped, none).digest() == grouped.digest()


@pytest.mark.parametrize("by", [None, "file"])
def test_no_split_of_many_rows_changes_a_bit(table, full, by):
    """With as many rows as make the sketches look at small hashes and tables of bins first, and pieces that do not."""
    rng = np.random.default_rng(0)
    binding = with_target(full, table(1, 40, 9))
    data = table(5, 40_000, 5000, 0.1)
    wide = pa.array(rng.integers(0, 2**40, data.num_rows))  # in some pieces of a short range, in others not
    wide = pc.if_else(pa.array(np.arange(data.num_rows) < 20_000), wide, pc.bit_wise_and(wide, 255))
    data = data.set_column(data.schema.get_field_index("thread"), "thread", wide)
    whole = partial(data, binding, by)
    assert whole.parts.keys["relation thread"].cut.all() and whole.parts.histograms["delay"].level.all()
    found = merged([partial(part, binding, by) for part in split(data, rng, 7)], rng)
    assert found.digest() == whole.digest()


def test_slices_inside_a_block_are_not_seen(table, full, monkeypatch):
    data = table(4, 700, 9, 0.2)
    whole = partial(data, full, "file")
    monkeypatch.setattr(rooms, "_ROWS", 64)
    assert partial(data, full, "file").digest() == whole.digest()


def test_chunks_dictionaries_and_widths_are_not_seen(table, full):
    data = table(2, 90, 6, 0.2)
    other = pa.concat_tables([data.slice(0, 31), data.slice(31, 20), data.slice(51)])
    for name in ("who", "file", "text"):
        at = other.schema.get_field_index(name)
        other = other.set_column(at, name, other[name].dictionary_encode())
    other = other.set_column(
        other.schema.get_field_index("thread"), "thread", other["thread"].cast(pa.float64())
    )
    one, two = measure(data, full).to_pylist(), measure(other, full).to_pylist()
    assert one == two


def test_hashes_are_the_same_in_another_process(table, full):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conftest import FULL, make_table; from raysel.gime import partial;"
        "print(partial(make_table(3, 200), FULL, 'file').digest())"
    )
    from pathlib import Path

    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == partial(table(3, 200), full, "file").digest()


def test_hashes_are_what_they_were():
    """States saved by an earlier version merge only if a value's hash never changes."""
    data = pa.table(
        {
            "n": [1, 2**40, None],
            "t": ["a", "a longer text of several words", ""],
            "l": [[1.5], [], [2.0, 3.0]],
        }
    )
    state = partial(data, Binding(content=["n", "t", "l"]))
    assert state.parts.keys["content"].hash.tolist() == [
        14386764801730293303,
        14744312073254329964,
        16798122223225722534,
    ]


def test_saved_states_go_on(table, full, tmp_path):
    yesterday, today = table(0, 500, 40), table(1, 400, 40)
    binding = with_target(full, table(2, 50, 40))
    for by in (None, "file", timedelta(days=2)):
        path = tmp_path / "deep" / f"{by}.arrow".replace(":", "")
        saved = partial(yesterday, binding, by)
        saved.save(path)
        assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
        loaded = State.load(path)
        assert loaded.digest() == saved.digest() and loaded.binding == binding and loaded.by == by
        both = merge(loaded, partial(today, binding, by))
        assert both.digest() == partial(pa.concat_tables([yesterday, today]), binding, by).digest()
        assert finalize(loaded).equals(finalize(saved), check_metadata=True)


def test_saved_sketches_go_on(tmp_path):
    binding = Binding(relation="k", classes="k")
    rng = np.random.default_rng(0)
    parts = [pa.table({"k": rng.integers(0, 9000, 20_000)}) for _ in range(2)]
    partial(parts[0], binding).save(tmp_path / "s")
    both = merge(State.load(tmp_path / "s"), partial(parts[1], binding))
    assert both.parts.keys["classes"].cut[0]
    assert both.digest() == partial(pa.concat_tables(parts), binding).digest()


def test_states_that_do_not_belong_together_are_refused(table, full):
    one = partial(table(0, 20), full)
    with pytest.raises(StateError, match="different bindings"):
        merge(one, partial(table(0, 20), Binding(entity="who")))
    with pytest.raises(StateError, match="different bindings"):
        merge(one, partial(table(0, 20), with_target(full, table(1, 20))))
    with pytest.raises(StateError, match="grouped differently"):
        merge(one, partial(table(0, 20), full, "file"))
    texts = pa.table({"k": ["1"]})
    with pytest.raises(DataError, match="Column 'k' holds number in some rows and text in others"):
        merge(partial(pa.table({"k": [1]}), Binding(entity="k")), partial(texts, Binding(entity="k")))
    with pytest.raises(DataError, match="time with zone in some rows and time without zone"):
        zoned, plain = (pa.table({"t": pa.array([1], pa.timestamp("s", tz))}) for tz in ("UTC", None))
        merge(partial(zoned, Binding(event_time="t")), partial(plain, Binding(event_time="t")))
    nothing = pa.table({"k": pa.array([None, None], pa.null())})
    assert finalize(
        merge(partial(nothing, Binding(entity="k")), partial(texts, Binding(entity="k")))
    ).num_rows


def test_a_group_has_one_label_whatever_its_column_comes_in():
    binding, moment = Binding(content="x"), 1_700_000_000
    for types, value in (
        ([pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")], np.datetime64(moment, "s").item()),
        ([pa.timestamp("s", "UTC"), pa.timestamp("ns", "Asia/Tokyo")], np.datetime64(moment, "s").item()),
        ([pa.time32("s"), pa.time64("us")], np.datetime64(moment, "s").item().time()),
        ([pa.duration("s"), pa.duration("us")], timedelta(days=3)),
        ([pa.int8(), pa.int64(), pa.null()], 3),
        ([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())], "3"),
    ):
        states = [
            partial(pa.table({"x": [1], "g": pa.array([None if t == pa.null() else value], t)}), binding, "g")
            for t in types
        ]
        whole = states[0]
        for state in states[1:]:
            whole = merge(whole, state)
        assert len([label for label in whole.groups if label is not None]) == 1, types


def test_groups_by_columns_of_different_kinds_are_refused(tmp_path):
    binding = Binding(content="x")
    day = np.datetime64("2024-05-01", "D").item()
    for one, other in (([1], ["1"]), ([True], ["true"]), ([day], pa.array([day]).cast(pa.timestamp("s")))):
        states = [partial(pa.table({"x": [1], "g": g}), binding, "g") for g in (one, other)]
        with pytest.raises(DataError, match=r"Column 'g' holds .* in some rows and .* in others"):
            merge(*states)
        states[0].save(tmp_path / "s")
        with pytest.raises(DataError, match="Column 'g' holds"):
            merge(State.load(tmp_path / "s"), states[1])


def test_lists_without_an_element_go_with_any_others():
    binding = Binding(content="x")
    none, some, words = ([[], [None], None], [[1], []], [["a"]])
    states = [partial(pa.table({"x": x}), binding) for x in (none, some, words)]
    joined = merge(states[0], states[1])
    assert joined.kinds == {"x": "list of number"}
    whole = partial(pa.table({"x": [*none, *some]}), binding)  # all but the bytes: a null of no type has none
    assert joined.parts.keys["content"].hash.tolist() == whole.parts.keys["content"].hash.tolist()
    with pytest.raises(DataError, match="'x' holds list of number in some rows and list of text in others"):
        merge(joined, states[2])


def test_damaged_files_are_refused(table, full, tmp_path, monkeypatch):
    path = tmp_path / "state.arrow"
    with pytest.raises(StateError, match=r"state\.arrow"):
        State.load(path)
    partial(table(0, 50), full).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(StateError, match="not a saved state"):
        State.load(path)
    where = whole.rindex(np.array([50], np.int64).tobytes())  # the number of rows
    path.write_bytes(whole[:where] + b"\x31" + whole[where + 1 :])
    with pytest.raises(StateError, match="does not match its digest"):
        State.load(path)
    path.write_bytes(whole)
    monkeypatch.setattr(rooms, "KEYS", 4096)
    with pytest.raises(StateError, match="sketches of other sizes"):
        State.load(path)
    with pytest.raises(StateError, match="not a state of the GIME metrics"):
        State.from_arrow(pa.table({"a": [1]}))
    broken = with_target(full, table(0, 9)).to_json().replace('"summary": "', '"summary": "!')
    with pytest.raises(ConfigError, match="not a saved target"):
        measure(table(0, 9), Binding.from_json(broken))


def test_many_groups_take_what_they_hold():
    """2,000 groups of 4 rows: no sketch of its own for each."""
    rng = np.random.default_rng(0)
    data = pa.table(
        {"g": np.repeat(np.arange(2000), 4), "k": rng.integers(0, 9, 8000), "c": rng.integers(0, 3, 8000)}
    )
    binding = Binding(relation="k", classes="c", content=["k", "c"])
    grouped, whole = partial(data, binding, "g"), partial(data, binding)
    assert len(grouped.groups) == 2000
    assert grouped.nbytes() < 2000 * 700
    assert whole.nbytes() < 4000
    result = finalize(grouped)
    assert result.num_rows == 2000 * finalize(whole).num_rows


def test_state_stays_small_in_rows():
    rng = np.random.default_rng(0)
    sizes = []
    for rows in (50_000, 200_000):
        data = pa.table(
            {
                "e": rng.integers(0, 10**9, rows),
                "c": rng.random(rows),
                "at": pa.array(rng.integers(0, 2**60, rows), pa.timestamp("ns")),
            }
        )
        binding = Binding(entity="e", event_time="at", relation="e", content="c", reference_time="2024-01-01")
        sizes.append(partial(data, binding).nbytes())
    assert sizes[1] < sizes[0] + 100 < 500_000
