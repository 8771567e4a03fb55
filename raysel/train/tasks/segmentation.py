"""Segmentation: one class per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from raysel.core.parameters import check_fields
from raysel.data.row_index import ID
from raysel.data.store import Column, described
from raysel.errors import DataError, first
from raysel.train.tasks.classification import check_shape, factory
from raysel.train.tasks.inputs import outputs
from raysel.train.tasks.task import Facts


@dataclass(frozen=True)
class Segmentation:
    """Predict the class of every pixel; the metric is the mean intersection over union (mean_iou).

    ``train.model`` names a function ``(shape, classes)`` that returns the model: the shape of an image and the number of
    classes. The model returns logits of shape (B, classes, H, W).

    Parameters
    ----------
    input : str
        Column with the images, tensors of one shape.
    label : str
        Column with the masks: tensors (H, W) of class codes.
    num_classes : int
        Number of classes; the codes are 0 to ``num_classes`` - 1.
    ignore : int
        Code of the pixels that are ignored.
    """

    input: str
    label: str
    num_classes: Annotated[int, Field(ge=2)]
    ignore: int = 255

    metric: ClassVar[str] = "mean_iou"
    direction: ClassVar[Literal["max", "min"]] = "max"
    classes: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        return [self.input, self.label]

    def check_columns(self, columns: Mapping[str, Column]) -> None:
        """Raise DataError unless the columns hold images of one shape and masks (H, W)."""
        image, mask = columns[self.input], columns[self.label]
        if image.kind != "array" or len(image.shape) != 3:
            raise DataError(
                f"train.input: Column '{self.input}' holds {described(image)}; a segmentation needs tensors (C, H, W)."
            )
        if mask.kind != "array" or len(mask.shape) != 2 or np.dtype(mask.dtype).kind not in "iub":
            raise DataError(
                f"pool.label: Column '{self.label}' holds {described(mask)}; a segmentation needs masks (H, W) of integers."
            )

    def model(self, facts: Facts) -> torch.nn.Module:
        """Return what ``train.model`` makes."""
        made: torch.nn.Module = factory(facts)(facts.columns[self.input].shape, self.num_classes)
        return made

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return the images and the masks (B, H, W). Raises DataError for codes that are no class."""
        images, masks = (
            np.require(rows[self.input], requirements=["C", "W"]),
            rows[self.label].astype(np.int64),
        )
        strange = (masks != self.ignore) & ((masks < 0) | (masks >= self.num_classes))
        if strange.any():
            ids = rows[ID][strange.any(axis=(1, 2))]
            raise DataError(
                f"pool.label: The value {masks[strange][0]} in column '{self.label}' (sample_id {first(ids)}) is not a class: "
                f"classes are numbered from 0 to {self.num_classes - 1} (train.task.num_classes is {self.num_classes}). Only "
                f"{self.ignore} (train.task.ignore) is allowed as another value."
            )
        return torch.from_numpy(images), torch.from_numpy(masks)

    def check(self, model: torch.nn.Module, batch: Any, facts: Facts) -> None:
        """Raise ConfigError unless the model returns one logit per class and pixel."""
        images, masks = batch
        wanted = (len(masks), self.num_classes, *masks.shape[1:])
        check_shape(outputs(model, images), wanted, "one logit per class and pixel")

    def losses(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy of each pixel (B, H, W), and which pixels count."""
        images, masks = batch
        losses = F.cross_entropy(outputs(model, images), masks, reduction="none", ignore_index=self.ignore)
        return losses, masks != self.ignore

    def sums(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return the confusion matrix: pixels by true and predicted class."""
        images, masks = batch
        count = self.num_classes
        known = masks != self.ignore
        pairs = masks[known] * count + outputs(model, images).argmax(dim=1)[known]
        return {"confusion": torch.bincount(pairs, minlength=count * count).reshape(count, count)}

    def metrics(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the mean intersection over union of the classes that occur, and the share of right pixels."""
        table = sums["confusion"]
        both = table.diagonal()
        union = table.sum(0) + table.sum(1) - both
        return {
            "mean_iou": float((both / union)[union > 0].mean()),
            "pixel_accuracy": float(both.sum() / table.sum()),
        }
