"""A checkpoint: the model's objects, the selection state and the position in the run.

It is complete or known to be damaged.

Every rank writes its part into one directory::

    session.json                    rank 0: which run it is, its position, its history
    objects.pt                      rank 0: the state_dict of everything the loop named
    selection-<p>-of-<P>.arrow      the committed state of the p-th of P ranges of samples: one per rank, or one in all
    staged-<p>-of-<P>.arrow         the losses of the current epoch recorded there so far, within an epoch only
    rng-<r>-of-<W>.pt               the rank's random generators
    files-<r>-of-<W>.json           size and digest of each file that the rank wrote, itself included

It can be restored by any number of ranks into any number of shards. A file that is missing, truncated or
changed is found before anything is read from it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from raysel.core import storage
from raysel.dynamic.shards import spans
from raysel.dynamic.state import SampleState
from raysel.errors import StateError
from raysel.train.objects import state_dicts

if TYPE_CHECKING:
    from raysel.dynamic.keeper import Keeper, Keepers

_SESSION, _OBJECTS = "session.json", "objects.pt"
_STAGED = pa.schema([pa.field("slot", pa.int64(), False), pa.field("loss", pa.float32(), False)])


class Damaged(StateError):
    """Raised for a checkpoint that is not complete."""


def save(
    directory: Path,
    rank: int,
    world: int,
    about: Mapping[str, Any],
    objects: Mapping[str, Any],
    keeper: Keeper | Keepers,
    attempt: str,
    pieces: int,
) -> None:
    """Write this rank's part into ``directory``, which ranks may share.

    ``about`` has ``run``, ``epoch``, and ``within``: whether an epoch is under way. The first ``pieces`` ranks write the
    selection state. What is gathered from all ranks is gathered here, so every rank calls it.
    """
    rng = directory / _name("rng", rank, world, "pt")
    torch.save(get_rng(), rng)
    mine = [rng]
    whole = state_dicts(objects)
    # What binds the ranks' parts together: a directory may hold those of an earlier one that was cut short.
    within = about["within"] and about["within"]["steps"]
    stamp = [attempt, about["epoch"], within]
    if rank == 0:
        _save(whole, directory / _OBJECTS)
        text = json.dumps({**about, "world": world, "pieces": pieces, "stamp": stamp})
        storage.write_text(directory / _SESSION, text)
        mine += [directory / _OBJECTS, directory / _SESSION]
    parts = spans(about["run"]["samples"], pieces)
    if rank < len(parts):
        _, state = keeper.state(attempt, *parts[rank])
        mine.append(_write(directory / _name("selection", rank, pieces, "arrow"), state.to_arrow()))
        if about["within"]:
            noted = pa.table(keeper.staged(attempt, about["epoch"], *parts[rank]), schema=_STAGED)
            mine.append(_write(directory / _name("staged", rank, pieces, "arrow"), noted))
    files = {path.name: _digest(path) for path in sorted(mine)}
    manifest = {"files": files, "stamp": stamp, "digest": _of_text(files, stamp)}
    storage.write_text(directory / _name("files", rank, world, "json"), json.dumps(manifest))


def verified(directory: Path) -> dict[str, Any]:
    """Return the contents of ``session.json``; raise Damaged unless every file is as it was written."""
    try:
        about = json.loads((directory / _SESSION).read_text())
        for rank in range(about["world"]):
            manifest = json.loads((directory / _name("files", rank, about["world"], "json")).read_text())
            if _of_text(manifest["files"], manifest["stamp"]) != manifest["digest"]:
                raise ValueError(f"The list of files of rank {rank} was changed.")
            if manifest["stamp"] != about["stamp"]:
                raise ValueError(f"The files of rank {rank} belong to another checkpoint.")
            if rank == 0 and _SESSION not in manifest["files"]:
                raise ValueError(f"{_SESSION} is not in the list of files.")
            for name, expected in manifest["files"].items():
                found = _digest(directory / name)
                if found != expected:
                    cut = f"has {found[0]} bytes instead of {expected[0]}"
                    raise ValueError(f"{name} {'was changed' if found[0] == expected[0] else cut}.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError):
            what = f"{Path(error.filename).name} is missing"
        else:
            what = str(error).splitlines()[0].rstrip(".")
        raise Damaged(f"The checkpoint {directory} is damaged ({what}).") from error
    return dict(about)


class StateFiles:
    """The committed state in a checkpoint, read in parts: no more of it is held than is needed."""

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        self._directory, self._pieces = directory, about["pieces"]
        self._parts = spans(about["run"]["samples"], self._pieces)

    def __len__(self) -> int:
        return self._parts[-1][1]

    def cut(self, start: int, stop: int) -> SampleState:
        """Return the state of the slots start..stop."""
        found = []
        for piece, (begin, end) in enumerate(self._parts):
            if begin < stop and start < end:
                path = self._directory / _name("selection", piece, self._pieces, "arrow")
                part = SampleState.from_arrow(_read(path))
                found.append(part.cut(max(start - begin, 0), min(stop, end) - begin))
        if len(found) == 1:
            return found[0]
        loss, selected = ([getattr(part, name) for part in found] for name in ("loss", "selected"))
        return SampleState(np.concatenate(loss), np.concatenate(selected))


def staged(directory: Path, about: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the (slots, losses) recorded in the epoch, one pair per file.

    Inf for a loss that was not finite.
    """
    for piece in range(len(spans(about["run"]["samples"], about["pieces"]))):
        table = _read(directory / _name("staged", piece, about["pieces"], "arrow"))
        yield table.column("slot").to_numpy(), table.column("loss").to_numpy()


def history(directory: Path) -> list[dict[str, Any]]:
    """Return the entries of the finished epochs."""
    return list(json.loads((directory / _SESSION).read_text())["history"])


def objects(directory: Path) -> dict[str, Any]:
    """Return the state_dicts by name."""
    return dict(_load(directory / _OBJECTS))


def rng(directory: Path, rank: int, world: int) -> Any:
    """Return the random generators of this rank; None if the checkpoint is of another number of ranks."""
    path = directory / _name("rng", rank, world, "pt")
    return _load(path) if path.exists() else None


def get_rng() -> dict[str, Any]:
    """Return the state of every global random generator of this process."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - saved for the user's loop
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [random.getstate()[0], list(random.getstate()[1]), random.getstate()[2]],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
    }


def set_rng(saved: dict[str, Any]) -> None:
    """Restore what :func:`get_rng` returned."""
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))  # noqa: NPY002


def _name(kind: str, rank: int, world: int, ending: str) -> str:
    return f"{kind}-{rank}-of-{world}.{ending}"


def _of_text(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> list[Any]:
    """Return [bytes, BLAKE2b of 128 bits] of a file."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
            size += len(part)
    return [size, digest.hexdigest()]


def _write(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _save(objects: dict[str, Any], path: Path) -> None:
    """Save the state_dicts; raise StateError now, while the run can be corrected, for what :func:`_load` would refuse."""
    try:
        torch.save(objects, path)
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads no tensor
    except (OSError, RuntimeError) as error:
        raise StateError(
            f"The checkpoint {path} could not be written ({' '.join(str(error).split())[:300]})."
        ) from error
    except (pickle.PickleError, AttributeError, TypeError) as error:
        unknown = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "an unknown type"
        )
        what = (
            unknown if isinstance(error, pickle.UnpicklingError) else str(error).splitlines()[0].rstrip(".")
        )
        raise StateError(
            f"The state to save holds something other than tensors, numbers and text ({what}). A checkpoint could not "
            "restore it: leave it out of the state_dict(), or put plain values there."
        ) from None


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise Damaged(f"The checkpoint file {path} is damaged ({str(error).splitlines()[0]}).") from error
