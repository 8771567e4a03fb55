"""Compute vectors of the pool, and of the target and the rows to avoid if a selector uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import ray

import raysel
from raysel.core.fingerprint import fingerprint, library_versions
from raysel.core.storage import Place
from raysel.data import pipeline
from raysel.data.decode import decoder_versions, is_bytes, is_text
from raysel.data.embedders.build import (
    as_embedder,
    check_columns_of,
    check_types,
    make_embedder,
    named_embedder,
)
from raysel.data.shards import Options
from raysel.data.sources import rows_digest
from raysel.errors import ConfigError, DataError
from raysel.workflow.config import Embed as Settings
from raysel.workflow.directory import RunDirectory, digest_of
from raysel.workflow.inputs import Look
from raysel.workflow.steps.step import Step


@dataclass(frozen=True)
class Embed(Step):
    """Vectors as Parquet under ``vectors/ROLE``: ``sample_id``, ``embedding``. Continues where a killed run stopped."""

    settings: Settings
    roles: tuple[str, ...]
    name: str = "embed"
    resumable: ClassVar[tuple[str, ...]] = ("vectors",)

    @property
    def about(self) -> str:
        """What the step makes."""
        return "vectors of the rows"

    def check(self, look: Look) -> None:
        """Check the column, its number of elements, and the name of the embedder."""
        columns, made, sizes = self.settings.columns, None, {}
        if self.settings.method.builtin:
            with _under_embed():
                made = named_embedder(self.settings.method.spec)
                check_columns_of(made, self.settings.method.spec, columns)
        for role in (role for role in self.roles if role in look.schemas):
            for column in columns:
                look.check_column(role, column, "embed.column")
            if hasattr(made, "takes"):
                try:
                    check_types(look.schemas[role], made, columns)
                except DataError as error:
                    raise DataError(f"embed.column (files of {role}.path): {error}") from None
            sizes[role] = look.elements(role, columns[0]) if len(columns) == 1 else None
        for role, size in sizes.items():
            if None not in (size, sizes["pool"]) and size != sizes["pool"]:
                raise DataError(
                    f"embed.column '{columns[0]}': In this column, the vectors of the pool have {sizes['pool']} elements, "
                    f"but those of the {'rows to avoid' if role == 'avoid' else role} have {size}. Name a column whose vectors have "
                    "one length in all files, or write the files with vectors of one length."
                )
        if (width := sizes["pool"]) is not None:
            self.check_width(made, width)

    def check_width(self, made: Any, width: int) -> None:
        """Raise ConfigError if the embedder cannot be used on a column of ``width`` elements."""
        if hasattr(made, "check"):
            with _under_embed():
                made.check(width)

    def embedder(self) -> Any:
        """Return the embedder, not fitted yet. Runs the code that its name refers to."""
        method = self.settings.method
        with _under_embed():
            return method.make() if method.parameters else make_embedder(method.spec)

    def key(self, run: RunDirectory) -> dict[str, Any]:
        """Return the settings, code and weights of the embedder, and the rows."""
        made = self.embedder()
        learns, network = hasattr(made, "fit"), hasattr(made, "load")
        if self.settings.version is not None:
            code: Any = self.settings.version
        elif learns:
            code = None if self.settings.method.builtin else fingerprint(made, "embed.embedder")
        else:
            code = pipeline.digest(as_embedder(made))
        kind = run.inputs["pool"].schema.field(self.settings.columns[0]).type
        images = is_bytes(kind) or is_text(kind)  # of files, or their paths
        device = "cuda" if network and ray.cluster_resources().get("GPU", 0) else "cpu"
        return {
            "settings": asdict(self.settings),
            "code": code,
            "device": device,
            "rows": {role: rows_digest(run.read(role), self.settings.columns) for role in self.roles},
            "selected": digest_of(run.rows),
            "validation": run.drawn and run.drawn.key,
            "versions": library_versions("numpy", "pyarrow", "scikit-learn")
            | (decoder_versions() if images else {}),
        }

    def run(self, run: RunDirectory, directory: Place) -> dict[str, Any]:
        """Fit the embedder on the pool and compute the vectors of every role."""
        settings = self.settings
        inputs = {role: run.selectable(role) for role in self.roles}
        embedder = raysel.fit_embedder(self.embedder(), inputs["pool"], column=settings.columns)
        with _under_embed():
            check_columns_of(embedder, embedder.name, settings.columns)
        options = Options(settings.normalize, settings.dtype, settings.on_error)
        explained = getattr(embedder, "explained", None)
        answer: dict[str, Any] = {
            "embedder": settings.method.spec,
            "explained": None if explained is None else float(np.float64(explained)),
        }
        for role, rows in inputs.items():
            report = pipeline.compute(
                rows,
                embedder,
                settings.columns,
                str(directory / "vectors" / role),
                options,
                lambda text, role=role: run.progress.note(self.title, f"{role}: {text}"),  # type: ignore[misc]
                settings.version,
            )
            answer[role] = asdict(report)
        return answer


@contextmanager
def _under_embed() -> Iterator[None]:
    """Name the section in the path of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith("embed.") else f"embed.{text}") from None
