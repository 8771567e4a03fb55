"""The TopK sparse autoencoder whose units are the factors of a data set (the probe of RepDiv).

Two modes, after l2-normalising each vector and subtracting the training set's mean:

- ``paper`` (Zhou et al., 2026, arXiv 2603.04981): ``z = TopK(W x + b_e)``, the k largest by absolute value, and
  ``x_hat = W^T z + b_d`` with the same W. A survivor may be negative; it takes part in ``x_hat`` but is not active.
- ``topk`` (Gao et al., 2024, arXiv 2406.04093): ``z = TopK(ReLU(W_e (x - b)))`` and ``x_hat = W_d z + b``. W_d starts
  as W_e^T and goes its own way, each unit's row of it at length 1.

A unit is *active* on a sample when its code is above 0, and dead when it has not been for an epoch. NumPy in and
out; torch, imported when first needed, does the work on the CPU or a GPU. Generators are private.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raysel.core.storage import write_bytes
from raysel.errors import ConfigError, DataError
from raysel.gio.distances import vectors as matrix

if TYPE_CHECKING:
    import torch

FORMAT = "raysel-autoencoder/1"
MODES = ("topk", "paper")
TILE = 256  # rows of one product: always this many, since the last bits of a product depend on its shape
_AUXILIARY = 1 / 32  # weight of the loss that wakes dead units, in both modes
_SHORTEST = 1e-12
_LONG, _SHRINK = 2.0**50, 2.0**-80
_LEAST_VARIANCE = 1e-10  # of unit vectors; below it, what is left is rounding
_TENSORS = ("encoder", "encoder_bias", "decoder", "decoder_bias", "mean")

Floats = npt.NDArray[np.float32]


class Codes(NamedTuple):
    """The k units of each vector, in ascending order: indices int32 (n, k), values float32 (n, k)."""

    indices: npt.NDArray[np.int32]
    values: Floats

    @property
    def active(self) -> npt.NDArray[np.int32]:
        """int32 (n, k): the indices, -1 where the unit is not active (value 0 or below)."""
        return np.where(self.values > 0, self.indices, np.int32(-1))


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained autoencoder of ``units`` units over vectors of ``dimensions`` dimensions; it is never changed.

    encoder, decoder: float32 (units, dimensions), one row a unit; encoder_bias: (units,); decoder_bias, mean:
    (dimensions,). mode: "topk" or "paper". k: units kept a sample. training: the settings it was fitted with.
    """

    mode: str
    k: int
    encoder: Floats
    encoder_bias: Floats
    decoder: Floats
    decoder_bias: Floats
    mean: Floats
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return self.encoder.shape[0]

    @property
    def dimensions(self) -> int:
        return self.encoder.shape[1]

    def encode(self, vectors: Any, *, device: str = "cpu") -> Codes:
        """The codes of vectors (n, dimensions), any real dtype; of equal pre-activations the lowest units stay.

        Beside the 8 k bytes a row of the answer, memory does not grow with n. Which units of a row stay and which of
        them are active does not depend on the rows beside it, nor on the processor: what float32 cannot tell apart is
        settled in float64. Raises DataError for vectors of another width or not finite.
        """
        rows = matrix(vectors, "vectors", self.dimensions, single=True)
        torch = _torch(device)
        indices, values = np.empty((len(rows), self.k), np.int32), np.empty((len(rows), self.k), np.float32)
        longest = float(np.linalg.norm(self.encoder.astype(np.float64), axis=1).max())
        with torch.no_grad():
            for place, x in self._tiles(rows, device):
                part = rows[place]
                pre = self._pre(x, device)[: len(part)]
                error = self._error(float(x.norm(dim=1).max()), longest)
                keep = self._kept(pre, part, error)
                units = keep.nonzero()[:, 1].reshape(-1, self.k)
                code = pre.gather(1, units)
                unsure = (code.abs() <= error).nonzero()
                if len(unsure):  # whether they are active
                    row, at = unsure.unbind(1)
                    code[row, at] = torch.from_numpy(self._exact(part, row, units[row, at])).to(code)
                indices[place] = units.cpu().numpy()
                values[place] = (code if self.mode == "paper" else code.clamp_(min=0.0)).cpu().numpy()
        return Codes(indices, values)

    def report(self, vectors: Any, *, device: str = "cpu") -> dict[str, Any]:
        """How well it explains vectors (n, dimensions), and which of its units they use; ``json.dumps`` can write it.

        samples, units; dead_units and dead_fraction: never active on these; unexplained: squared error over squared
        distance from their mean, both of the normalised vectors (None when they are all the same); active: units
        active a sample, mean; counts: [lowest count, highest count, units] for 0, 1, 2-3, 4-7, ... samples.
        """
        rows = matrix(vectors, "vectors", self.dimensions, single=True)
        torch = _torch(device)
        count = np.zeros(self.units, np.int64)
        error, squares, total = 0.0, 0.0, np.zeros(self.dimensions)
        with torch.no_grad():
            decoder, bias = (_on(a, device) for a in (self.decoder, self.decoder_bias))
            for place, x in self._tiles(rows, device):
                pre = self._pre(x, device)
                z = _codes(pre, self.k, self.mode)
                here = slice(0, place.stop - place.start)
                off = (x - torch.addmm(bias, z, decoder))[here].double()
                error += float((off * off).sum())
                centred = x[here].double()
                squares += float((centred * centred).sum())
                total += centred.sum(0).cpu().numpy()
                count += (z[here] > 0).sum(0).cpu().numpy()
        variance = squares - float(total @ total) / len(rows)
        dead = int(np.count_nonzero(count == 0))
        return {
            "samples": len(rows),
            "units": self.units,
            "dead_units": dead,
            "dead_fraction": dead / self.units,
            "unexplained": error / variance if variance > _LEAST_VARIANCE * len(rows) else None,
            "active": float(count.sum() / len(rows)),
            "counts": histogram(count),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, its configuration in the header; RunError where it cannot be written."""
        from safetensors.numpy import save

        about = {"format": FORMAT, "mode": self.mode, "k": self.k, "training": self.training}
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        # One entry: the library keeps no order among several.
        write_bytes(path, save(tensors, {"config": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Autoencoder:
        """Read what :meth:`save` wrote; DataError if it is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})["config"])
                if about["format"] != FORMAT:
                    raise DataError(
                        f"{path} is not an autoencoder of this version: its format is {about['format']!r}, but {FORMAT!r} is expected."
                    )
                arrays = {name: file.get_tensor(name) for name in _TENSORS}
                return cls(about["mode"], about["k"], **arrays, training=about["training"])
        except (OSError, SafetensorError, LookupError, TypeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{path} is not a saved autoencoder ({str(error).splitlines()[0]}); fit and save it again."
            ) from error

    def _kept(self, pre: torch.Tensor, part: Floats, error: float) -> torch.Tensor:
        """bool, as ``pre``: the k units of every row of ``part`` that stay."""
        import torch

        size = pre.abs() if self.mode == "paper" else pre
        last = _kth(size, self.k)
        near = size >= last - 2 * error
        crowded = (near.sum(1) > self.k).nonzero()[:, 0]
        if len(crowded) == 0:
            return near
        # What lies clearly above the last stays; which of those near to it do is settled among them.
        keep, high = size >= last, last[crowded] + 2 * error
        keep[crowded] = clear = size[crowded] > high
        row, unit = (near[crowded] & ~clear).nonzero().unbind(1)
        exact = self._exact(part, crowded[row], unit)
        exact = np.abs(exact) if self.mode == "paper" else exact
        at, units = row.cpu().numpy(), unit.cpu().numpy()
        order = np.lexsort((units, -exact, at))
        rank = np.arange(len(at)) - np.searchsorted(at, at)  # at ascends, also once ordered
        taken = order[rank < (self.k - clear.sum(1)).cpu().numpy()[at]]
        chosen = torch.from_numpy(taken).to(row.device)
        keep[crowded[row[chosen]], unit[chosen]] = True
        return keep

    def _error(self, reach: float, longest: float) -> float:
        """How far pre-activations may lie from the exact ones, by rounding alone, whichever way the sums are taken.

        reach: length of the longest row once it is normalised; longest: of the longest row of the encoder.
        """
        d, unit = self.dimensions, float(np.finfo(np.float32).eps) / 2
        product = (d + 4) * (reach * longest + float(np.abs(self.encoder_bias).max()))
        return unit * (product + (d / 2 + 4) * longest)  # the second: of normalising a row of length 1

    def _exact(self, part: Floats, row: torch.Tensor, unit: torch.Tensor) -> npt.NDArray[np.float64]:
        """The pre-activations of these units on these rows of ``part``, each added up by itself in float64."""
        at, units = row.cpu().numpy(), unit.cpu().numpy()
        x = part[at].astype(np.float64)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
        x -= self.mean
        return np.einsum("ij,ij->i", x, self.encoder[units].astype(np.float64)) + self.encoder_bias[units]

    def _pre(self, x: torch.Tensor, device: str) -> torch.Tensor:
        import torch

        return torch.addmm(_on(self.encoder_bias, device), x, _on(self.encoder, device).T)

    def _tiles(self, rows: Floats, device: str) -> Iterator[tuple[slice, torch.Tensor]]:
        """Where each tile's rows lie, and the tile, normalised; the last one filled up with zeros."""
        mean = _on(self.mean, device)
        for start in range(0, len(rows), TILE):
            part = rows[start : start + TILE]
            if len(part) < TILE:
                part = np.concatenate([part, np.zeros((TILE - len(part), part.shape[1]), np.float32)])
            yield slice(start, min(start + TILE, len(rows))), _normalised(part, mean)


def fit_autoencoder(
    vectors: Any,
    *,
    units: int | None = None,
    k: int = 32,
    mode: str = "topk",
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    together: bool = False,
) -> Autoencoder:
    """Train a sparse autoencoder on vectors (n, D), any real dtype, with Adam and a cosine schedule to 0.

    units: default 8 D. k: units kept a sample. Dead units, silent for as many samples as an epoch has, are woken
    by a loss of weight 1/32: in ``paper``, each is asked to reconstruct alone the sample of the batch on which its
    pre-activation is largest; in ``topk``, the D / 2 of them with the largest pre-activations reconstruct the error
    the others leave (AuxK). The same call on the same kind of machine gives the same weights to the last bit.
    together: the vectors are this process's part of them all; every process that torch.distributed has joined makes
    this call, and all get the same autoencoder. A batch has rows of all of them, equally many, so a process with fewer
    goes round its own again; ``topk`` only, since the revival of ``paper`` looks at a batch as a whole.
    Raises ConfigError for parameters out of range, k above ``units`` included, and DataError for vectors that are
    not finite or all the same.
    """
    rows = matrix(vectors, "vectors", single=True)
    n, d = rows.shape
    units = 8 * d if units is None else _whole("units", units)
    k, epochs, batch_size = _whole("k", k), _whole("epochs", epochs), _whole("batch_size", batch_size)
    if k > units:
        raise ConfigError(f"k = {k} is more than the autoencoder's {units} units; lower k or raise units.")
    if mode not in MODES:
        raise ConfigError(f"mode = {mode!r} is unknown; choose 'topk' or 'paper'.")
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate = {learning_rate!r} must be a positive number.")
    torch = _torch(device)
    add, world = _joined(mode, batch_size) if together else (_as_it_is, 1)
    total = int(add(torch.tensor(n, device=device)))
    mean = _mean(rows, total, lambda sums: add(torch.from_numpy(sums).to(device)).cpu().numpy())
    training = {
        "samples": total,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }

    draws = torch.Generator().manual_seed(_whole("seed", seed, 0))
    start = torch.nn.functional.normalize(torch.randn(units, d, generator=draws), dim=1)
    centre = _on(mean, device)
    encoder = start.to(device, copy=True).requires_grad_()
    decoder = encoder if mode == "paper" else start.to(device, copy=True).requires_grad_()
    encoder_bias = torch.zeros(units, device=device, requires_grad=mode == "paper")
    bias = torch.zeros(d, device=device, requires_grad=True)
    weights = [encoder, bias] + ([encoder_bias] if mode == "paper" else [decoder])
    adam = torch.optim.Adam(weights, lr=learning_rate)
    share = batch_size // world  # of a batch: the rows of this process
    batches = -(-n // share)
    if together:
        batches = int(_most(torch.tensor(batches, device=device)))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * batches)
    silent = torch.zeros(units, dtype=torch.int64, device=device)  # samples since the unit was last active

    for _ in range(epochs):
        visit = torch.randperm(n, generator=draws).numpy()
        if together:
            visit = np.resize(visit, batches * share)
        for at in range(0, len(visit), share):
            x = _normalised(rows[visit[at : at + share]], centre)
            shifted = x if mode == "paper" else x - bias
            pre = torch.addmm(encoder_bias, shifted, encoder.T)
            z = _codes(pre, k, mode)
            error = x - torch.addmm(bias, z, decoder)
            loss = (error * error).sum(1).mean()
            dead = (silent >= total).nonzero()[:, 0]
            if len(dead):
                wake = _revival if mode == "paper" else _residual
                loss = loss + _AUXILIARY * wake(x, error, pre[:, dead], decoder[dead], bias)
            adam.zero_grad()
            loss.backward()
            with torch.no_grad():
                for weight in weights:
                    weight.grad = add(weight.grad) / world if together else weight.grad
                if mode == "topk":  # a gradient along a row would only fill Adam's memory
                    decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
                adam.step()
                cosine.step()
                if mode == "topk":
                    decoder.copy_(torch.nn.functional.normalize(decoder, dim=1))
                silent += len(x) * world
                silent[add((z > 0).any(0).int()) > 0] = 0

    with torch.no_grad():
        if mode == "topk":  # the shared bias folds into the encoder's: one product a tile, no subtraction
            encoder_bias = -(encoder @ bias)
        arrays = {
            "encoder": encoder,
            "encoder_bias": encoder_bias,
            "decoder": decoder,
            "decoder_bias": bias,
        }
        found = {name: tensor.detach().cpu().numpy().copy() for name, tensor in arrays.items()}
    if not all(np.isfinite(array).all() for array in found.values()):
        raise DataError(f"The training diverged; lower learning_rate (it is {learning_rate:g}).")
    return Autoencoder(mode, k, **found, mean=mean, training=training)


def _as_it_is(part: torch.Tensor) -> torch.Tensor:
    return part


def _joined(mode: str, batch_size: int) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """How a tensor is summed over the processes that torch.distributed has joined, and their number."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "together = True, but torch.distributed is not initialised; call init_process_group first."
        )
    if mode != "topk":
        raise ConfigError(
            f"mode = '{mode}' cannot be trained by several processes, because it revives a dead unit with one sample of the whole "
            "batch; use mode='topk' or one process."
        )
    world = dist.get_world_size()
    if batch_size % world:
        raise ConfigError(
            f"batch_size = {batch_size} cannot be divided equally among {world} processes; use a multiple of {world}."
        )

    def add(part: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(part)
        return part

    return add, world


def _most(count: torch.Tensor) -> torch.Tensor:
    import torch.distributed as dist

    dist.all_reduce(count, dist.ReduceOp.MAX)
    return count


def histogram(count: npt.NDArray[np.int64]) -> list[list[int]]:
    """[lowest, highest, units] for the units active on 0, 1, 2-3, 4-7, ... samples, up to the largest count."""
    classes = np.bincount([int(c).bit_length() for c in count.tolist()])
    spans = [(0, 0)] + [(1 << i, (2 << i) - 1) for i in range(len(classes) - 1)]
    return [[low, high, int(found)] for (low, high), found in zip(spans, classes, strict=True)]


def _revival(
    x: torch.Tensor, error: torch.Tensor, pre: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The mean squared error of every dead unit that alone reconstructs the sample it answers to most."""
    best, which = pre.max(0)
    alone = x[which] - (best[:, None] * decoder + bias)
    return (alone * alone).sum(1).mean()


def _residual(
    x: torch.Tensor, error: torch.Tensor, pre: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The mean squared error that the dead units leave of the (fixed) error of the others: AuxK."""
    z = _codes(pre, min(max(x.shape[1] // 2, 1), pre.shape[1]), "topk")
    left = error.detach() - z @ decoder
    return (left * left).sum(1).mean()


def _codes(pre: torch.Tensor, k: int, mode: str) -> torch.Tensor:
    """The codes as a dense matrix, 0 where a unit is not among the k."""
    if mode == "paper":
        return pre * _largest(pre.detach().abs(), k)
    return pre.clamp(min=0.0) * _largest(pre.detach(), k)


def _largest(size: torch.Tensor, k: int) -> torch.Tensor:
    """bool, as ``size``: its k largest of every row, ties to the lowest unit."""
    import torch

    if k == size.shape[1]:
        return torch.ones_like(size, dtype=torch.bool)
    last = _kth(size, k)
    keep = size >= last
    if int(keep.sum()) > k * len(size):
        tied = (keep.sum(1) > k).nonzero()[:, 0]
        above, equal = size[tied] > last[tied], size[tied] == last[tied]
        keep[tied] = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return keep


def _kth(size: torch.Tensor, k: int) -> torch.Tensor:
    """(n, 1): the k-th largest of every row."""
    import torch

    if size.is_cuda:
        return size.topk(k, dim=1).values.amin(1, keepdim=True)
    # NumPy's selection of values alone takes a fifth of the time of torch.topk.
    at = size.shape[1] - k
    return torch.from_numpy(np.partition(size.numpy(), at, axis=1)[:, at, None])


def _mean(rows: Floats, count: int, add: Callable[[npt.NDArray[np.float64]], Any]) -> Floats:
    """The mean of ``count`` rows at length 1, in float64 and in order; DataError if they are all the same.

    rows: those of this process. add: the sum over all processes of what it is given.
    """
    sums = np.zeros(rows.shape[1] + 1)  # the last: of squares
    for at in range(0, len(rows), 65_536):
        part = rows[at : at + 65_536].astype(np.float64)
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), _SHORTEST)
        sums[:-1] += part.sum(0)
        sums[-1] += float(np.einsum("ij,ij->", part, part))
    sums = np.asarray(add(sums)) / count
    mean = sums[:-1]
    if float(sums[-1]) - float(mean @ mean) < _LEAST_VARIANCE:
        raise DataError(
            f"All {count} vectors have the same direction, so there are no factors to find; check the embedding."
        )
    return mean.astype(np.float32)


def _normalised(rows: Floats, mean: torch.Tensor) -> torch.Tensor:
    """The rows at length 1 (a row of zeros stays one), the mean subtracted, on the mean's device."""
    import torch

    x = torch.from_numpy(np.array(rows)).to(mean.device)
    if (
        x.numel() and float(x.abs().amax()) > _LONG
    ):  # whose squares float32 cannot hold; a power of two rounds nothing
        x.mul_(torch.where(x.abs().amax(1, keepdim=True) > _LONG, _SHRINK, 1.0))
    return x.div_(x.norm(dim=1, keepdim=True).clamp_(min=_SHORTEST)).sub_(mean)


def _on(array: Floats, device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(array)).to(device)


def _torch(device: str) -> Any:
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = '{device}', but torch sees no GPU; use device='cpu'.")
    return torch


def _whole(name: str, value: object, least: int = 1) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)
