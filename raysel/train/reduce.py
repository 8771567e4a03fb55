"""One number per sample from a criterion's unreduced losses, of any shape and precision."""

from __future__ import annotations

import torch

from raysel.errors import DataError


def per_sample(
    losses: torch.Tensor, rows: int, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the mean of each sample's elements that count.

    Nothing is changed in place and nothing is copied from the device.

    Parameters
    ----------
    losses : torch.Tensor, shape (B,), (B, T), (B, H, W), ...
        Unreduced losses. float16 and bfloat16 are averaged in float32; float64 stays float64.
    rows : int
        B.
    mask : torch.Tensor, shape of ``losses``, optional
        bool (True counts), or a number of at least 0 (the element's weight in its sample's mean). Elements at
        which it is 0 may have any value, including NaN.

    Returns
    -------
    values : torch.Tensor, shape (B,)
        The means. A sample in which no element counts has the value 0, without a gradient.
    counts : torch.Tensor of bool, shape (B,), or None
        Which samples count; None if all do.

    Raises
    ------
    DataError
        For another shape or dtype.
    """
    if not isinstance(losses, torch.Tensor) or losses.ndim == 0 or losses.shape[0] != rows:
        few = isinstance(losses, torch.Tensor) and losses.ndim > 0 and 0 < losses.shape[0] < rows
        advice = 'use reduction="none" to keep one loss per sample'
        if few:
            advice = (
                "collate_fn must keep every sample that it is given: return a placeholder for a sample without data, and "
                f"leave it out with session.loss(batch, losses, mask). If collate_fn keeps every sample, {advice}"
            )
        raise DataError(
            f"loss: The losses must have shape ({rows},) or ({rows}, ...), one row per sample, got {_shape(losses)}; {advice}."
        )
    if not losses.is_floating_point():
        raise DataError(f"loss: The losses must be floating-point numbers, got {losses.dtype}.")
    if losses.numel() == 0 and rows and mask is None:
        raise DataError(f"loss: The losses have no elements; their shape is {tuple(losses.shape)}.")
    values = losses if losses.dtype in (torch.float32, torch.float64) else losses.float()
    if mask is None:
        return (values.flatten(1).mean(1) if values.ndim > 1 else values), None
    if not isinstance(mask, torch.Tensor) or mask.shape != losses.shape:
        raise DataError(
            f"loss: The mask must have the shape of the losses, {tuple(losses.shape)}, got {_shape(mask)}."
        )
    weight = mask.detach().to(device=values.device, dtype=values.dtype, non_blocking=True)
    element, weight = (part.reshape(rows, losses[0].numel() if rows else 1) for part in (values, weight))
    # where, not times: zero times NaN is NaN, in the value and in the gradient.
    total = (torch.where(weight != 0, element, torch.zeros_like(element)) * weight).sum(1)
    count = weight.sum(1)
    counts = count > 0
    return total / torch.where(counts, count, torch.ones_like(count)), counts


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
