"""Classification with random crops and flips of the training images, as a task of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from raysel.train.tasks import Classification


@dataclass(frozen=True)
class CropFlip(Classification):
    """Classify images (C, H, W); each training image is shifted by up to ``shift`` pixels and mirrored half of the time.

    Parameters
    ----------
    shift : int
        Largest shift in pixels; the border is filled with zeros.
    """

    shift: int = 2

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return images and classes; images are changed only if a generator is given, as during training."""
        images, labels = super().collate(rows, generator)
        if generator is None:
            return images, labels
        count, _, height, width = images.shape
        wide = pad(images, [self.shift] * 4)
        top, left = torch.randint(0, 2 * self.shift + 1, (2, count), generator=generator).tolist()
        cut = [wide[i, :, top[i] : top[i] + height, left[i] : left[i] + width] for i in range(count)]
        flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.stack(cut)
        images[flipped] = images[flipped].flip(-1)
        return images, labels
