"""Embedders that are neural networks: loaded once per worker, from local weights if there are any.

A network's last bits depend on which rows it receives together, so these embedders use tiles of fixed ids.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from raysel.cluster.code import load_function
from raysel.core.fingerprint import fingerprint, folder_digest, library_versions
from raysel.data.decode import Takes
from raysel.errors import ConfigError, DataError, first

_TEXT_BATCH, _TEXT_BATCH_GPU = 32, 256
_TEXT_TILE = 1024  # sorted by length inside: wide enough that a batch holds texts of about one length
_TILE = 64

Run = Callable[[Any], np.ndarray]


@dataclass(frozen=True, eq=False)
class ModelEmbedder:
    """A network that ``make(device)`` loads; calling the embedder itself loads it on the CPU."""

    name: str
    takes: Takes
    tile: int
    digest: str
    make: Callable[[str], Run]
    prepare: Callable[[Any], np.ndarray] | None = None

    def load(self, device: str) -> Run:
        """Return the loaded network, to be called with rows."""
        return self.make(device)

    def __call__(self, rows: Any) -> np.ndarray:
        """Return one vector per row."""
        return self.make("cpu")(rows)

    def __fingerprint__(self) -> Any:
        return self.digest


def need(module: str, package: str, extra: str, spec: str) -> ModuleType:
    """Return an optional module; raise ConfigError with the pip command if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (
            f"{package}, which is not installed"
            if getattr(error, "name", None) == module
            else f"{package}, which cannot be imported ({error})"
        )
        raise ConfigError(
            f"'{spec}' needs {missing}. Install it with pip install 'raysel[{extra}]'."
        ) from None


# ---- text ----------------------------------------------------------------------------------------------------


def sentence_transformer(spec: str, name: str) -> ModelEmbedder:
    """Sentence vectors of a text, by a sentence-transformers model from local weights.

    Parameters
    ----------
    spec : str
        Complete name, such as ``sentence-transformers:all-MiniLM-L6-v2``.
    name : str
        A folder, or the name of a model in the local Hugging Face cache.

    Returns
    -------
    ModelEmbedder
        An embedder whose network is loaded once per worker.

    Raises
    ------
    ConfigError
        If the package is not installed or the weights are not there.
    """
    need("sentence_transformers", "sentence-transformers", "text", spec)
    path = _text_model_folder(spec, name)
    versions = library_versions("torch", "transformers", "tokenizers", "sentence-transformers")
    digest = fingerprint((folder_digest(path, _is_document), versions))
    return ModelEmbedder(spec, "text", _TEXT_TILE, digest, partial(_load_text, str(path)))


def _text_model_folder(spec: str, name: str) -> Path:
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


def _load_text(path: str, device: str) -> Run:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device=device, local_files_only=True)
    height = _TEXT_BATCH if device == "cpu" else _TEXT_BATCH_GPU

    def run(texts: list[str]) -> np.ndarray:  # encode sorts by length and puts back
        vectors = model.encode(texts, batch_size=height, show_progress_bar=False, convert_to_numpy=True)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    return run


# ---- images --------------------------------------------------------------------------------------------------


def timm(spec: str, name: str) -> ModelEmbedder:
    """Pooled features of images, by a pretrained network of timm.

    Parameters
    ----------
    spec : str
        Complete name, such as ``timm:resnet18``.
    name : str
        Name of a network, or ``local-dir:PATH`` for one on disk.

    Returns
    -------
    ModelEmbedder
        An embedder whose network is loaded once per worker.

    Raises
    ------
    ConfigError
        If the package is not installed or the weights cannot be loaded.
    """
    library = need("timm", "timm", "vision", spec)
    model = _made(spec, lambda: library.create_model(name, pretrained=True, num_classes=0))
    config = library.data.resolve_model_data_config(model)
    prepare = partial(_prepared, library.data.create_transform(**config, is_training=False))
    return ModelEmbedder(
        spec, "images", _TILE, _digest(model, prepare, spec), partial(_load_timm, name), prepare
    )


def _load_timm(name: str, device: str) -> Run:
    import timm as library

    return _runner(library.create_model(name, pretrained=True, num_classes=0), device)


def torchvision(spec: str, name: str) -> ModelEmbedder:
    """Features of images before the classifier, by a network of torchvision with its default weights.

    Parameters
    ----------
    spec : str
        Complete name, such as ``torchvision:resnet18``.
    name : str
        Name of a network.

    Returns
    -------
    ModelEmbedder
        An embedder whose network is loaded once per worker.

    Raises
    ------
    ConfigError
        If the package is not installed or the weights cannot be loaded.
    """
    models = need("torchvision.models", "torchvision", "vision", spec)
    weights = _made(spec, lambda: models.get_model_weights(name).DEFAULT)
    model = _made(spec, lambda: models.get_model(name, weights=weights))
    prepare = partial(_prepared, weights.transforms())
    return ModelEmbedder(
        spec, "images", _TILE, _digest(model, prepare, spec), partial(_load_torchvision, name), prepare
    )


def _load_torchvision(name: str, device: str) -> Run:
    import torchvision

    model = torchvision.models.get_model(name, weights="DEFAULT")
    return _runner(model, device, _before_last(model, name))


def open_clip(spec: str, name: str) -> ModelEmbedder:
    """Image vectors of a CLIP network of open_clip.

    Parameters
    ----------
    spec : str
        Complete name, such as ``open_clip:ViT-B-32/laion2b_s34b_b79k``.
    name : str
        NAME/PRETRAINED, where PRETRAINED is a tag or a file of weights; or ``hf-hub:NAME`` or ``local-dir:PATH``.

    Returns
    -------
    ModelEmbedder
        An embedder whose network is loaded once per worker.

    Raises
    ------
    ConfigError
        If the package is not installed, no weights are named, or they cannot be loaded.
    """
    need("open_clip", "open_clip_torch", "vision", spec)
    if not _clip_parts(name)[1] and not name.startswith(
        _CLIP_WHOLE
    ):  # every worker would draw its own weights
        raise ConfigError(
            f"embedder: '{spec}' does not name its weights; write open_clip:NAME/PRETRAINED, for example "
            "open_clip:ViT-B-32/laion2b_s34b_b79k, or a file of weights in the place of PRETRAINED."
        )
    model, prepare = _made(spec, lambda: _clip(name))
    return ModelEmbedder(
        spec,
        "images",
        _TILE,
        _digest(model, prepare, spec),
        partial(_load_open_clip, name),
        partial(_prepared, prepare),
    )


_CLIP_WHOLE = ("hf-hub:", "local-dir:")


def _clip_parts(name: str) -> tuple[str, str]:
    if name.startswith(_CLIP_WHOLE):
        return name, ""
    architecture, _, pretrained = name.partition("/")
    return architecture, pretrained


def _clip(name: str) -> tuple[Any, Any]:
    import open_clip as library

    architecture, pretrained = _clip_parts(name)
    model, _, prepare = library.create_model_and_transforms(architecture, pretrained=pretrained or None)
    return model, prepare


def _load_open_clip(name: str, device: str) -> Run:
    model, _ = _clip(name)
    return _runner(model, device, model.encode_image)


def _prepared(transform: Callable[[Any], Any], image: Any) -> np.ndarray:
    return transform(image).numpy()


def _made(spec: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ConfigError(f"embedder: '{spec}' cannot be loaded ({_line(error)}).") from error


# ---- the user's own network ----------------------------------------------------------------------------------


def network(spec: str, argument: str) -> ModelEmbedder:
    """Output of a torch network of your own, or what enters its last linear layer.

    Parameters
    ----------
    spec : str
        Complete name, such as ``torch:net.py:factory``.
    argument : str
        ``file.py:factory`` or ``module:factory``; with ``:penultimate`` after it, the vectors are what enters the last
        linear layer. Naming it runs its code. ``factory()`` returns the network with its weights. The network gets
        numbers as they are stored, images as uint8 (n, 3, height, width), and text as a list of str.

    Returns
    -------
    ModelEmbedder
        An embedder whose network is loaded once per worker.

    Raises
    ------
    ConfigError
        If there is no such factory, or it returns something else than a torch.nn.Module.
    """
    place, _, rest = argument.partition(".py:") if ".py:" in argument else argument.partition(":")
    place = f"{place}.py" if ".py:" in argument else place
    name, _, layer = rest.partition(":")
    if not place or not name or layer not in ("", "penultimate"):
        raise ConfigError(
            f"embedder: '{spec}' does not name a network; write torch:module:factory or torch:file.py:factory, and add "
            ":penultimate for the input of its last layer."
        )
    factory = load_function(f"{place}:{name}", f"embedder: '{spec}'")
    model = _network(factory, spec)
    digest = _digest(model, None, spec)
    if layer:
        _before_last(model, spec)
    return ModelEmbedder(spec, "stored", _TILE, digest, partial(_load_network, factory, layer, spec))


def _network(factory: Callable[[], Any], spec: str) -> Any:
    import torch

    model = factory()
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"embedder: The factory of '{spec}' returned a {type(model).__name__}, not a torch.nn.Module."
        )
    return model


def _load_network(factory: Callable[[], Any], layer: str, spec: str, device: str) -> Run:
    model = _network(factory, spec)
    return _runner(model, device, _before_last(model, spec) if layer else None)


def _before_last(model: Any, spec: str) -> Callable[[Any], Any]:
    """Return a call of ``model`` that returns the input of its last linear layer."""
    import torch

    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    if not linear:
        raise ConfigError(
            f"embedder: The network of '{spec}' has no linear layer, so its penultimate output is not defined."
        )
    seen: list[Any] = []
    linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def call(batch: Any) -> Any:
        seen.clear()
        model(batch)
        return seen.pop()

    return call


def _runner(model: Any, device: str, call: Callable[[Any], Any] | None = None) -> Run:
    import torch

    model = model.to(device).eval()
    call = call or model

    def run(rows: Any) -> np.ndarray:
        if isinstance(rows, list) and rows and isinstance(rows[0], np.ndarray):
            rows = _stack(rows)
        with torch.inference_mode():
            batch = torch.from_numpy(np.array(rows)).to(device) if isinstance(rows, np.ndarray) else rows
            vectors = call(batch).flatten(start_dim=1).float().cpu().numpy()
        return np.ascontiguousarray(vectors)

    return run


def _stack(images: list[np.ndarray]) -> np.ndarray:
    sizes = sorted({image.shape for image in images})
    if len(sizes) > 1:
        raise DataError(
            f"The images are of different sizes ({first(['x'.join(map(str, size)) for size in sizes])}); a network of "
            "your own needs images of one size, so resize them first."
        )
    rows = np.stack(images)
    return rows.transpose(0, 3, 1, 2) if rows.dtype == np.uint8 else rows


# ---- digests -------------------------------------------------------------------------------------------------


def _digest(model: Any, prepare: Any, spec: str) -> str:
    """Return a digest of a network's weights, code, the user's code that it reaches, and preprocessing."""
    remedy = "give the network a text attribute 'version' that changes with it"
    parts = [fingerprint(part, f"embedder '{spec}'", remedy) for part in (model, prepare)]
    return fingerprint(
        (parts, library_versions("torch", "timm", "torchvision", "open_clip_torch", "transformers"))
    )


def _is_document(name: str) -> bool:
    return name.endswith(".md") or name in (".gitattributes", ".gitignore")


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
