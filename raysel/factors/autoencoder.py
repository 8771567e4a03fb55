"""The TopK sparse autoencoder whose units are the factors of a data set (the probe of RepDiv).

There are two modes, after each vector is l2-normalised and the training set's mean is subtracted:

- ``paper`` (Zhou et al., 2026, arXiv:2603.04981): ``z = TopK(W x + b_e)``, the k largest by absolute value,
  and ``x_hat = W^T z + b_d`` with the same W. A kept code may be negative; it counts in ``x_hat`` but is not
  active.
- ``topk`` (Gao et al., 2024, arXiv:2406.04093): ``z = TopK(ReLU(W_e (x - b)))`` and ``x_hat = W_d z + b``.
  W_d starts as W_e^T and is then trained independently, with each unit's row at length 1.

A unit is *active* on a sample if its code is above 0, and dead if it has not been active for an epoch. Inputs
and outputs are NumPy arrays; torch, imported when it is first needed, computes on the CPU or a GPU. Random
generators are private.
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

from raysel.core.numbers import whole
from raysel.core.storage import on_this_machine, output, write_bytes
from raysel.errors import ConfigError, DataError, RunError, reason_of, shown
from raysel.gio.distances import vectors as matrix

if TYPE_CHECKING:
    import torch

FORMAT = "raysel-autoencoder/1"
MODES = ("topk", "paper")
TILE = 256  # rows of one product: always this many, since the last bits of a product depend on its shape
_AUXILIARY = 1 / 32  # weight of the loss that wakes dead units, in both modes
_SHORTEST = 1e-12
_LONG, _SHRINK = 2.0**50, 2.0**-80
_LEAST_VARIANCE = 1e-10  # of unit vectors; less is rounding
_TENSORS = ("encoder", "encoder_bias", "decoder", "decoder_bias", "mean")

Floats = npt.NDArray[np.float32]


class Codes(NamedTuple):
    """The k units of each vector, in ascending order: indices int32 (n, k), values float32 (n, k)."""

    indices: npt.NDArray[np.int32]
    values: Floats

    @property
    def active(self) -> npt.NDArray[np.int32]:
        """The indices, -1 if the unit is not active (value 0 or below): int32 (n, k)."""
        return np.where(self.values > 0, self.indices, np.int32(-1))


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained sparse autoencoder; immutable.

    Attributes
    ----------
    mode : {"topk", "paper"}
        See the module.
    k : int
        Units kept per sample.
    encoder, decoder : array of float32, shape (units, dimensions)
        One row per unit.
    encoder_bias : array of float32, shape (units,)
        Bias of the encoder.
    decoder_bias, mean : array of float32, shape (dimensions,)
        Bias of the decoder, and the mean of the normalised training vectors.
    training : dict
        The settings with which it was fitted.
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
        """Number of units."""
        return self.encoder.shape[0]

    @property
    def dimensions(self) -> int:
        """Number of dimensions of the vectors."""
        return self.encoder.shape[1]

    def encode(self, vectors: Any, *, device: str = "cpu") -> Codes:
        """Return the codes of vectors.

        If pre-activations are equal, the lowest units are kept. Which units of a row are kept and which of
        them are active does not depend on the other rows or on the processor: values that float32 cannot tell
        apart are compared in float64. In addition to the result, 8 k bytes per row, memory does not grow with
        n.

        Parameters
        ----------
        vectors : array, shape (n, dimensions)
            Vectors of any real dtype.
        device : str
            Where to compute.

        Returns
        -------
        Codes
            The k units of each vector, and their values.

        Raises
        ------
        DataError
            For vectors of another width or that are not finite.
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
        """Report how well vectors are explained, and which units they use.

        Parameters
        ----------
        vectors : array, shape (n, dimensions)
            Vectors of any real dtype.
        device : str
            Where to compute.

        Returns
        -------
        dict
            Values that ``json.dumps`` can write. ``samples`` and ``units``; ``dead_units`` and
            ``dead_fraction``: units never active on these vectors; ``unexplained``: squared error divided by
            squared distance from the mean, both of the normalised vectors (None if they are all the same);
            ``active``: mean number of active units per sample; ``counts``: [lowest count, highest count,
            units] for 0, 1, 2-3, 4-7, ... samples.

        Raises
        ------
        DataError
            As :meth:`encode` raises.
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
        """Write one safetensors file, with the configuration in its header.

        Raise RunError if it cannot be written.
        """
        from safetensors.numpy import save

        about = {"format": FORMAT, "mode": self.mode, "k": self.k, "training": self.training}
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        # One entry: the library keeps no order among several.
        write_bytes(output(path), save(tensors, {"config": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Autoencoder:
        """Read what :meth:`save` wrote; raise DataError if it is missing, damaged or something else."""
        from safetensors import safe_open

        try:
            with on_this_machine(path) as place, safe_open(place, framework="np") as file:
                about = json.loads((file.metadata() or {})["config"])
                if about["format"] != FORMAT:
                    raise DataError(
                        "This autoencoder was not saved by this version of raysel: its format is "
                        f"{shown(about['format'])}, but {FORMAT!r} is expected; fit and save it again."
                    )
                arrays = {name: file.get_tensor(name) for name in _TENSORS}
                return cls(about["mode"], about["k"], **arrays, training=about["training"])
        except RunError:  # of an object store that cannot be read
            raise
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except Exception as error:  # of a file that another program has written, anything can be wrong
            raise DataError(
                f"{path} is not a saved autoencoder ({reason_of(error)}); fit and save it again."
            ) from error

    def _kept(self, pre: torch.Tensor, part: Floats, error: float) -> torch.Tensor:
        """Return, as bool of the shape of ``pre``, the k units that are kept of every row of ``part``."""
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
        """Return how far rounding may move pre-activations, in whatever order sums are computed.

        ``reach`` is the length of the longest normalised row, ``longest`` that of the longest row of the
        encoder.
        """
        d, unit = self.dimensions, float(np.finfo(np.float32).eps) / 2
        product = (d + 4) * (reach * longest + float(np.abs(self.encoder_bias).max()))
        return unit * (product + (d / 2 + 4) * longest)  # the second: of normalising a row of length 1

    def _exact(self, part: Floats, row: torch.Tensor, unit: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return the pre-activations of these units on these rows, each summed on its own in float64."""
        at, units = row.cpu().numpy(), unit.cpu().numpy()
        x = part[at].astype(np.float64)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _SHORTEST)
        x -= self.mean
        return np.einsum("ij,ij->i", x, self.encoder[units].astype(np.float64)) + self.encoder_bias[units]

    def _pre(self, x: torch.Tensor, device: str) -> torch.Tensor:
        import torch

        return torch.addmm(_on(self.encoder_bias, device), x, _on(self.encoder, device).T)

    def _tiles(self, rows: Floats, device: str) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the place of each tile's rows, and the normalised tile; the last one is padded with zeros."""
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
    """Train a sparse autoencoder with Adam and a cosine schedule to 0.

    Units that have been silent for as many samples as an epoch has are dead, and are revived by a loss of
    weight 1/32. With ``paper``, each dead unit is trained to reconstruct, alone, the sample of the batch on
    which its pre-activation is largest. With ``topk``, the D / 2 dead units with the largest pre-activations
    reconstruct the error that the others leave (AuxK). The same call on the same kind of machine returns the
    same bits.

    Parameters
    ----------
    vectors : array, shape (n, D)
        Vectors of any real dtype.
    units : int, optional
        Number of units. Default: 8 D.
    k : int
        Units kept per sample.
    mode : {"topk", "paper"}
        See the module.
    epochs : int
        Number of epochs.
    batch_size : int
        Rows per batch, over all processes.
    learning_rate : float
        Learning rate at the start.
    seed : int
        Seed of the initial weights and of the order of rows.
    device : str
        Where to train.
    together : bool
        Whether the vectors are this process's part of all vectors. Every process that torch.distributed has
        joined then makes this call, and all return the same autoencoder. A batch has equally many rows of
        each, so a process with fewer rows repeats its own. Only with ``topk``, since ``paper`` revives units
        by the complete batch.

    Returns
    -------
    Autoencoder
        The trained autoencoder.

    Raises
    ------
    ConfigError
        For parameters that are out of range, including ``k`` above ``units``.
    DataError
        For vectors that are not finite or all the same, and if the training diverged.

    References
    ----------
    Gao et al., 2024, arXiv:2406.04093; Zhou et al., 2026, arXiv:2603.04981.

    Examples
    --------
    >>> from raysel.factors import fit_autoencoder
    >>> vectors = np.random.default_rng(0).normal(size=(50, 4))
    >>> fit_autoencoder(vectors, units=8, k=2, epochs=1).encode(vectors).indices.shape
    (50, 2)
    """
    rows = matrix(vectors, "vectors", single=True)
    n, d = rows.shape
    units = 8 * d if units is None else whole("units", units, 1)
    k, epochs, batch_size = whole("k", k, 1), whole("epochs", epochs, 1), whole("batch_size", batch_size, 1)
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

    draws = torch.Generator().manual_seed(whole("seed", seed, 0))
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
        raise DataError(
            f"The training of the autoencoder diverged; lower learning_rate (it is {learning_rate:g})."
        )
    return Autoencoder(mode, k, **found, mean=mean, training=training)


def _as_it_is(part: torch.Tensor) -> torch.Tensor:
    return part


def _joined(mode: str, batch_size: int) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """Return a function that sums a tensor over the joined processes, and their number."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "together = True, but torch.distributed is not initialised; call init_process_group first."
        )
    if mode != "topk":
        raise ConfigError(
            f"mode = '{mode}' cannot be trained by several processes: to train the units that no sample activates (dead units), "
            "one process must have the complete batch. Use mode='topk' or one process."
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
    """Return [lowest, highest, units] for the units active on 0, 1, 2-3, 4-7, ... samples."""
    classes = np.bincount([int(c).bit_length() for c in count.tolist()])
    spans = [(0, 0)] + [(1 << i, (2 << i) - 1) for i in range(len(classes) - 1)]
    return [[low, high, int(found)] for (low, high), found in zip(spans, classes, strict=True)]


def _revival(
    x: torch.Tensor, error: torch.Tensor, pre: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error of each dead unit alone on the sample on which it is largest."""
    best, which = pre.max(0)
    alone = x[which] - (best[:, None] * decoder + bias)
    return (alone * alone).sum(1).mean()


def _residual(
    x: torch.Tensor, error: torch.Tensor, pre: torch.Tensor, decoder: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return the mean squared error that the dead units leave of the (fixed) error of the others: AuxK."""
    z = _codes(pre, min(max(x.shape[1] // 2, 1), pre.shape[1]), "topk")
    left = error.detach() - z @ decoder
    return (left * left).sum(1).mean()


def _codes(pre: torch.Tensor, k: int, mode: str) -> torch.Tensor:
    """Return the codes as a dense matrix, 0 if a unit is not among the k."""
    if mode == "paper":
        return pre * _largest(pre.detach().abs(), k)
    return pre.clamp(min=0.0) * _largest(pre.detach(), k)


def _largest(size: torch.Tensor, k: int) -> torch.Tensor:
    """Return, as bool of the shape of ``size``, the k largest of every row; ties go to the lowest unit."""
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
    """Return the k-th largest of every row, (n, 1)."""
    import torch

    if size.is_cuda:
        return size.topk(k, dim=1).values.amin(1, keepdim=True)
    # NumPy's selection of values alone takes a fifth of the time of torch.topk.
    at = size.shape[1] - k
    return torch.from_numpy(np.partition(size.numpy(), at, axis=1)[:, at, None])


def _mean(rows: Floats, count: int, add: Callable[[npt.NDArray[np.float64]], Any]) -> Floats:
    """Return the mean of ``count`` rows at length 1, in float64 and in order.

    DataError is raised if they are all the same. ``rows`` are those of this process, and ``add`` returns the
    sum over all processes of its argument.
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
    """Return the rows at length 1 (a row of zeros stays one) less the mean, on the mean's device."""
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
