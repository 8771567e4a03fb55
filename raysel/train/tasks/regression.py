"""Regression: one number, or several, per row."""

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
from raysel.errors import DataError
from raysel.train.tasks.classification import check_shape, factory, shape
from raysel.train.tasks.inputs import check_inputs, decoded, outputs, tensors
from raysel.train.tasks.task import Facts

_LOSSES: dict[str, Any] = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.huber_loss}


@dataclass(frozen=True)
class Regression:
    """Predict numbers from images, text or numbers; the metric is the root mean squared error (rmse).

    ``train.model`` names a function ``(shape, outputs)`` that returns the model: the shape of a row of the input (a dict of
    shapes for several columns) and how many numbers a label has. The model returns (B,) or (B, outputs).

    Parameters
    ----------
    input : str or list of str
        Column with the input of the model, or several columns, which are passed to the model as keyword
        arguments. Text is passed as the keyword arguments ``input_ids`` and ``attention_mask``.
    label : str
        Column with the number or the numbers to predict.
    loss : {"squared", "absolute", "huber"}
        How the loss of a row is computed from its errors: the mean over the numbers to predict.
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
    loss: Literal["squared", "absolute", "huber"] = "squared"
    size: Annotated[int, Field(ge=1)] | None = None
    tokenizer: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 128

    metric: ClassVar[str] = "rmse"
    direction: ClassVar[Literal["max", "min"]] = "min"
    classes: ClassVar[str | None] = None
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
        kind = columns[self.label].kind
        if kind != "array":
            raise DataError(
                f"pool.label: Column '{self.label}' holds {kind}, but a regression predicts numbers."
            )

    def model(self, facts: Facts) -> torch.nn.Module:
        """Return what ``train.model`` makes."""
        numbers = int(np.prod(facts.columns[self.label].shape))
        made: torch.nn.Module = factory(facts)(shape(facts, self.input, self.size, self.max_length), numbers)
        return made

    def prepare(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return streamed rows with their images decoded."""
        return decoded(rows, self.inputs, self.size)

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return the inputs and the labels (B, outputs)."""
        inputs = tensors(rows, self.inputs, self.size, self.tokenizer, self.max_length)
        labels = torch.from_numpy(np.require(rows[self.label], np.float32, ["C", "W"]))
        return inputs, labels.reshape(len(labels), -1)

    def check(self, model: torch.nn.Module, batch: Any, facts: Facts) -> None:
        """Raise ConfigError unless the model returns as many numbers per row as a label has."""
        inputs, labels = batch
        check_shape(_predicted(model, inputs, labels), tuple(labels.shape), "one number per row and output")

    def losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss of each number, (B, outputs)."""
        inputs, labels = batch
        losses: torch.Tensor = _LOSSES[self.loss](_predicted(model, inputs, labels), labels, reduction="none")
        return losses

    def sums(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return the sums of the squared and of the absolute errors, and how many numbers were predicted."""
        inputs, labels = batch
        errors = (_predicted(model, inputs, labels) - labels).double()
        return {
            "squared": errors.square().sum(),
            "absolute": errors.abs().sum(),
            "numbers": torch.tensor(labels.numel()),
        }

    def metrics(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the root mean squared error and the mean absolute error."""
        squared, absolute = (float(sums[name] / sums["numbers"]) for name in ("squared", "absolute"))
        return {"rmse": squared**0.5, "mae": absolute}


def _predicted(model: torch.nn.Module, inputs: Any, labels: torch.Tensor) -> torch.Tensor:
    made = outputs(model, inputs)
    return made.reshape(labels.shape) if made.numel() == labels.numel() else made
