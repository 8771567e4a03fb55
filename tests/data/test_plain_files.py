"""Files with types that Ray cannot carry are read with their values, in the plain types."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysel.data.formats.parquet import read_pieces
from raysel.data.listing import list_source
from raysel.data.row_index import index_parquet

VALUES = ["a", None, "", "longer than a view holds"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_views_and_runs_of_files(tmp_path, suffix):
    columns = {
        "text": pa.array(VALUES, pa.string_view()),
        "bytes": pa.array([None if v is None else v.encode() for v in VALUES], pa.binary_view()),
        "lists": pa.array([[v] for v in VALUES], pa.list_(pa.string_view())),
        "structs": pa.array([{"a": v} for v in VALUES], pa.struct([("a", pa.string_view())])),
    }
    if suffix == "arrow":
        columns["views"] = pa.array([[1], None, [], [2, 3]], pa.list_view(pa.int64()))
        columns["runs"] = pa.RunEndEncodedArray.from_arrays(pa.array([3, 4]), pa.array(["x", "y"]))
    table = pa.table(columns)
    place = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, place)
    else:
        with pa.ipc.new_file(place, table.schema) as writer:
            writer.write_table(table)
    listing = list_source([place])
    if suffix == "parquet":
        index = index_parquet(listing)
        parts = [part for _, part in read_pieces(index.pieces(), table.column_names)]
    else:
        parts = list(listing.tables(listing.files[0], listing.unified.schema))
    found = pa.concat_tables(parts)
    assert not any("view" in str(of) or "run_end" in str(of) for of in found.schema.types)
    assert found.to_pylist() == table.to_pylist()
    assert found.take(pa.array([3, 0])).num_rows == 2
