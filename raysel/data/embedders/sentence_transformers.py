"""Sentence vectors of a text, by a model of the package sentence-transformers. Without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from raysel.core.fingerprint import fingerprint, folder_digest, library_versions
from raysel.data.decode import Takes
from raysel.data.embedders.network import NetworkEmbedder, NetworkName, Run, need
from raysel.errors import ConfigError, first

_BATCH, _BATCH_GPU = 32, 256
_TILE = 1024  # sorted by length inside: wide enough that a batch holds texts of about one length


@dataclass(frozen=True)
class SentenceTransformers(NetworkName):
    """Compute vectors of texts with a sentence-transformers model whose weights are on disk.

    Parameters
    ----------
    spec : str
        Complete name, such as ``sentence-transformers:all-MiniLM-L6-v2``.
    argument : str
        A folder, or the name of a model in the local Hugging Face cache.

    Raises
    ------
    ConfigError
        If the package is not installed, the weights are not there, or the model brings code of its own.
    """

    takes: ClassVar[Takes] = "text"

    def open(self) -> NetworkEmbedder:
        """Return the embedder; raise ConfigError if the package or the weights are not there."""
        need("sentence_transformers", "sentence-transformers", "text", self.spec)
        path = _folder(self.spec, self.argument)
        _refuse_code(self.spec, path)
        versions = library_versions("torch", "transformers", "tokenizers", "sentence-transformers")
        digest = fingerprint((folder_digest(path, _is_document), versions))
        return NetworkEmbedder(self.spec, self.takes, _TILE, digest, partial(_load, str(path)))

    @staticmethod
    def absolute(argument: str, place: Callable[[str], str]) -> str:
        """Return the argument with ``place(path)`` if it is a folder."""
        return place(argument) if argument.startswith((".", "~", "/")) else argument


def _folder(spec: str, name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / "modules.json").exists():
            raise ConfigError(
                f"embedder: '{spec}' cannot be loaded: the folder {path} holds no model (it has no config.json)."
            )
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"embedder: '{spec}' cannot be loaded: there is no folder {path}.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for repository in (name, f"sentence-transformers/{name}"):
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            continue
    raise ConfigError(
        f"embedder: '{spec}' cannot be loaded: there is no folder {name} and no such model in the local Hugging Face "
        f"cache. Nothing is downloaded during a run, so fetch it first with 'hf download {name}'."
    )


def _refuse_code(spec: str, folder: Path) -> None:
    """Raise ConfigError for a model that brings code of its own, which loading it would run on every worker."""
    code = sorted(set(_code_of(spec, folder)))
    if code:
        raise ConfigError(
            f"embedder: '{spec}' contains Python code ({first(code)}), which raysel does not run. Write a function that returns "
            "the network in a file of your own, and name it as torch:file.py:function."
        )


def _code_of(spec: str, folder: Path) -> Iterator[str]:
    for file in (folder / "modules.json", *sorted(folder.rglob("config.json"))):
        if not file.exists():
            continue
        try:
            found = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"embedder: '{spec}' cannot be loaded: {file} is damaged ({error}).") from error
        if isinstance(found, dict) and isinstance(found.get("auto_map"), dict):
            yield from map(str, found["auto_map"].values())
        for module in found if isinstance(found, list) else []:
            kind = str(module.get("type")) if isinstance(module, dict) else ""
            top = kind.partition(".")[0]
            if ((folder / top).is_dir() and top) or (folder / f"{top}.py").exists() or "--" in kind:
                yield kind


def _load(path: str, device: str) -> Run:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device=device, local_files_only=True)
    height = _BATCH if device == "cpu" else _BATCH_GPU

    def run(texts: list[str]) -> np.ndarray:  # encode sorts by length and puts back
        vectors = model.encode(texts, batch_size=height, show_progress_bar=False, convert_to_numpy=True)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    return run


def _is_document(name: str) -> bool:
    return name.endswith(".md") or name in (".gitattributes", ".gitignore")
