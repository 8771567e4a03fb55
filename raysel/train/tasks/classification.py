"""Classification: one class per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from raysel.core.parameters import check_fields
from raysel.data.store import Column
from raysel.errors import ConfigError
from raysel.train.tasks.inputs import check_inputs, decoded, outputs, tensors
from raysel.train.tasks.task import Facts


@dataclass(frozen=True)
class Classification:
    """Predict the class of a row from images, text or numbers; the metric is the accuracy.

    ``train.model`` names a function ``(shape, classes)`` that returns the model: the shape of a row of the input (a dict of
    shapes for several columns) and the number of classes. The model returns one logit per row and class.

    Parameters
    ----------
    input : str or list of str
        Column with the input of the model, or several columns, which are passed to the model as keyword
        arguments. Text is passed as the keyword arguments ``input_ids`` and ``attention_mask``.
    label : str
        Column with the class.
    size : int, optional
        Encoded images are scaled and cropped to this number of pixels per side, as uint8 of shape (3, size, size).
    tokenizer : str, optional
        Tokenizer that converts text to numbers: a local folder with a tokenizer of Hugging Face, or ``bytes``
        for the bytes of the text.
    max_length : int
        Largest number of tokens of a text; the rest is cut off.
    """

    input: str | list[str]
    label: str
    size: Annotated[int, Field(ge=1)] | None = None
    tokenizer: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 128

    metric: ClassVar[str] = "accuracy"
    direction: ClassVar[Literal["max", "min"]] = "max"
    classes: ClassVar[str | None] = "label"
    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def inputs(self) -> list[str]:
        """The input columns as a list."""
        return [self.input] if isinstance(self.input, str) else list(self.input)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        return [*self.inputs, self.label]

    def check_columns(self, columns: Mapping[str, Column]) -> None:
        """Raise ConfigError for columns that need further settings."""
        check_inputs(columns, self.inputs, self.size, self.tokenizer)

    def model(self, facts: Facts) -> torch.nn.Module:
        """Return what ``train.model`` makes."""
        made: torch.nn.Module = factory(facts)(self.shape(facts), len(facts.classes[self.label]))
        return made

    def shape(self, facts: Facts) -> Any:
        """Return the shape of a row of the inputs."""
        return shape(facts, self.input, self.size, self.max_length)

    def prepare(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return streamed rows with their images decoded."""
        return decoded(rows, self.inputs, self.size)

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return the inputs and the codes of the classes."""
        inputs = tensors(rows, self.inputs, self.size, self.tokenizer, self.max_length)
        return inputs, torch.from_numpy(rows[self.label])

    def check(self, model: torch.nn.Module, batch: Any, facts: Facts) -> None:
        """Raise ConfigError unless the model returns one logit per row and class."""
        check_shape(
            outputs(model, batch[0]),
            (len(batch[1]), len(facts.classes[self.label])),
            "one logit per row and class",
        )

    def losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the cross-entropy of each row."""
        inputs, labels = batch
        return F.cross_entropy(outputs(model, inputs), labels, reduction="none")

    def sums(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return the number of rows that are classified correctly, and of rows."""
        inputs, labels = batch
        right = (outputs(model, inputs).argmax(dim=1) == labels).sum()
        return {"right": right, "rows": torch.tensor(len(labels))}

    def metrics(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the accuracy."""
        return {"accuracy": float(sums["right"] / sums["rows"])}


def check_shape(made: Any, shape: tuple[int, ...], what: str) -> None:
    """Raise ConfigError unless the output of a model has this shape."""
    if not isinstance(made, torch.Tensor) or tuple(made.shape) != shape:
        got = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
        raise ConfigError(f"train.model: The model returned {got}; it must return {what}, of shape {shape}.")


def factory(facts: Facts) -> Any:
    """Return the function that ``train.model`` names; raise ConfigError if there is none."""
    if facts.factory is None:
        raise ConfigError("The key 'train.model' is missing: the task needs a function that makes the model.")
    return facts.factory


def shape(facts: Facts, names: str | list[str], size: int | None, length: int) -> Any:
    """Return the shape of a row of the inputs as the model gets it: of several columns a dict."""
    columns = [names] if isinstance(names, str) else names
    held = {name: facts.columns[name] for name in columns}
    shapes = {
        name: (length,) if kind.kind == "text" else (3, size, size) if kind.kind == "bytes" else kind.shape
        for name, kind in held.items()
    }
    return shapes[columns[0]] if len(columns) == 1 else shapes
