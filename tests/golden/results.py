"""Results that are pinned: ids, draws, selections, plans, committed states, and the counts of the quickstart.

Each function computes one section of ``expected.json`` for fixed seeds, through public interfaces alone, so that a
change of the architecture leaves them as they are. Inputs are integers, so that they are the same on every machine.
GIO runs k-means and solvers in floating point: its selections are those of one kind of machine (x86-64, the pinned
versions in ``constraints.txt``).

To renew: ``python tests/golden/renew.py [SECTION ...]``, which prints what changed. A change that must alter a result
renews it in a commit of its own that says why.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EXPECTED = Path(__file__).with_name("expected.json")


def digest(*arrays: Any) -> str:
    """16 hexadecimal digits that depend on the dtype, shape and content of the arrays; text is a list of str."""
    found = hashlib.blake2b(digest_size=8)
    for array in arrays:
        if isinstance(array, list):
            found.update(f"text {len(array)} ".encode() + "\0".join(map(str, array)).encode())
        else:
            found.update(f"{array.dtype.str} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


# ---- ids and draws


def ids(directory: Path) -> dict[str, Any]:
    """The ids of rows that are read from files, from memory, and from a folder to which files were added later."""
    import raysel

    def write(name: str, start: int, rows: int, group: int) -> None:
        path = directory / "rows" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"value": np.arange(start, start + rows)}), path, row_group_size=group)

    def numbered(rows: Any) -> str:
        table = rows.to_pandas().sort_values("sample_id")
        return digest(table["sample_id"].to_numpy(), table["value"].to_numpy())

    write("m", 0, 25, 7)
    write("b", 1000, 40, 40)
    write("x/a", 2000, 13, 4)
    index = directory / "index.json"
    found = {
        "parquet": numbered(raysel.read(directory / "rows")),
        "indexed": numbered(raysel.read(directory / "rows", index=index)),
        "memory": numbered(raysel.read({"value": np.arange(70_000)[::-1]})),
    }
    write("a", 3000, 9, 2)
    write("z", 4000, 5, 5)
    found["indexed, two files later"] = numbered(raysel.read(directory / "rows", index=index))
    found["not indexed, two files later"] = numbered(raysel.read(directory / "rows"))
    return found


def draws() -> dict[str, Any]:
    """The draw of each id, by which rows are sampled."""
    from raysel.core.hashing import hash_ids

    some = np.array([0, 1, 2, 65_535, 65_536, 2**31, 2**40, 2**62])
    return {f"seed {seed}": [draw.hex() for draw in hash_ids(some, seed).tolist()] for seed in (0, 1, 12_345)}


# ---- selections


def selections() -> dict[str, Any]:
    """Selections from 2,000 rows of integers, by every method that chooses before training."""
    import raysel
    from raysel.gime import Binding

    rng = np.random.default_rng(7)
    centres = rng.integers(-40, 41, (12, 6))
    group = rng.integers(0, 12, 2_000)
    rows = {
        "embedding": (centres[group] + rng.integers(-6, 7, (2_000, 6))).astype(np.float32),
        "kind": group % 5,
        "source": group * 3 % 7,
        "size": rng.integers(1, 100, 2_000),
    }
    aims = (centres[rng.integers(0, 4, 150)] + rng.integers(-6, 7, (150, 6))).astype(np.float32)
    pool, target = raysel.read(rows), raysel.read({"embedding": aims})
    small = raysel.read({"embedding": rows["embedding"][:120]})
    gime = raysel.GIME(
        Binding(classes="kind", entity="source", size="size"),
        {"variety.classes": (4, None), "volume.rows": (300, 900)},
    )
    first = raysel.GIO(0.1, clusters=60).select(pool, target)
    chosen = {
        "random": raysel.Random(0.3, seed=4).select(pool),
        "random, a count": raysel.Random(123).select(pool),
        "random, stratified": raysel.Random(0.11, stratify="kind", seed=2).select(pool),
        "gio": raysel.GIO(0.3).select(pool, target),
        "gio, 60 clusters": first,
        "gio, continued": raysel.GIO(0.25, clusters=60).select(pool, target, start=first),
        "gio, nearest": raysel.GIO(0.2, clusters=60, within="nearest", seed=3).select(pool, target),
        "gio, gradient": raysel.GIO(0.2, clusters=60, estimator="average", solver="gradient").select(
            pool, target
        ),
        "gio, rows": raysel.GIO(30, clusters=None).select(small, target),
        "gio, bytes": raysel.GIO("20KB", clusters=60).select(pool, target),
        "gime, rows": gime.select(pool, seed=1),
        "gime, groups": gime.select(pool, "source"),
    }
    return {name: _selection(selection) for name, selection in chosen.items()}


def _selection(selection: Any) -> dict[str, Any]:
    found = {
        "rows": len(selection),
        "ids": digest(selection.ids),
        "weights": digest(selection.weights),
        "reasons": digest(selection.table["reason"].to_pylist()),
    }
    if (dropped := selection.dropped) is not None:
        found["dropped"] = digest(dropped["sample_id"].to_numpy(), dropped["reason"].to_pylist())
    return found


# ---- plans and states

SAMPLES, EPOCHS, SEED = 70_000, 10, 11  # more samples than the 65,536 that are summed together


def _mixed(values: np.ndarray) -> np.ndarray:
    """A hash of each int64 (the finaliser of MurmurHash3), uint64."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        return x ^ (x >> np.uint64(33))


def _losses(slots: np.ndarray, epoch: int) -> np.ndarray:
    """Losses in steps of 2^-12 that fall with the epochs, with ties; one in 1,009 is not finite."""
    steps = (_mixed(slots) >> np.uint64(50)) + (_mixed(slots * EPOCHS + epoch) >> np.uint64(52))
    losses = (steps.astype(np.float64) / 4096 * (EPOCHS - epoch)).astype(np.float32)
    losses[slots % 1009 == epoch] = np.inf
    return losses


def policies() -> dict[str, Any]:
    """Every policy, by name."""
    from raysel.dynamic import FullData, InfoBatch, RandomPrune, RandomSubset, RepDiv, RoundRobin

    slots = np.arange(SAMPLES)
    classes = (_mixed(slots + 5) % np.uint64(7)).astype(np.int64)
    rep, div = (
        ((_mixed(slots + far) >> np.uint64(56)).astype(np.float64) / 256).astype(np.float32)
        for far in (10**6, 10**7)
    )
    scores = pa.table({"sample_id": slots, "rep": rep, "div": div})
    labelled = scores.append_column("label", pa.array(classes))
    return {
        "full data": FullData(),
        "random prune": RandomPrune(0.7, 0.6),
        "random subset": RandomSubset(0.3),
        "round robin": RoundRobin(0.3, delta=0.9),
        "infobatch": InfoBatch(0.6),
        "infobatch, quantile": InfoBatch(threshold=0.3),
        "infobatch, target saving": InfoBatch(target_saving=0.2),
        "infobatch, higher target saving": InfoBatch(target_saving=0.55),
        "infobatch, ema": InfoBatch(0.6, ema=0.5),
        "infobatch, classes": InfoBatch(0.6, classes=classes),
        "repdiv": RepDiv(scores, ratio=0.5),
        "repdiv, classes": RepDiv(labelled, ratio=0.5),
    }


def plans(name: str, shards: int = 1) -> dict[str, Any]:
    """The plans of one policy over ten epochs, and the state that they leave; equal for any number of shards."""
    from raysel.dynamic.keeper import Keeper, Keepers
    from raysel.dynamic.shards import cut, spans

    policy = policies()[name]
    if name.startswith("repdiv"):
        policy = policy.for_ids(SAMPLES)
    parts = spans(SAMPLES, shards)
    assert len(parts) == shards
    keeper: Any = Keepers(
        [Keeper(cut(policy, a, b, SAMPLES), b - a, EPOCHS, SEED, a, SAMPLES) for a, b in parts], parts
    )
    keeper.restore("golden")
    planned, hashed, states = [], [], []
    for epoch in range(EPOCHS):
        plan = keeper.plan("golden", epoch)
        seen = plan.slots[plan.slots % 13 != epoch]  # not every planned sample comes back with a loss
        keeper.update("golden", epoch, seen, _losses(seen, epoch))
        keeper.commit("golden", epoch)
        table = keeper.state("golden")[1].to_arrow()
        planned.append(len(plan))
        hashed.append(digest(plan.slots, plan.weights))
        states.append(digest(table["loss"].to_numpy(), table["selected"].to_numpy()))
    return {"planned": planned, "plans": hashed, "states": states}


# ---- the quickstart


def quickstart(results: Any, selection: Any) -> dict[str, Any]:
    """What does not depend on the rounding of losses, of the results of a run and its saved selection.

    Between its first and its last two epochs the chain plans by losses, so that its steps, and the epochs of the random
    subset that is trained for as many steps, are not pinned.
    """
    chain = [epoch.planned for epoch in results.arms["chain"].epochs]
    ledger, data = results.ledger, results.data
    full = ledger.entry("full")
    assert full is not None
    return {
        "data": {
            "pool": data.pool,
            "target": data.target,
            "test": data.test,
            "classes": list(data.classes),
        },
        "rows": {entry.arm: entry.rows for entry in ledger.entries},
        "full": {"epochs": full.epochs, "steps": full.steps, "samples": full.samples_backward},
        "planned first": chain[0],
        "planned last": chain[-2:],
        "kept": {kind.label: kind.kept for kind in results.selection.classes},
        "selection": _selection(selection),
    }
