"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from raysel.cluster.code import load_function, load_object
from raysel.core.registry import nearest
from raysel.errors import ConfigError, reason_of
from raysel.registry import OPTIMIZERS

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}
"""Factors of the learning rate after the warm-up, by the share in [0, 1] of the rest that is done."""


def schedule(
    progress: float, warmup: float = 0.1, after: Callable[[float], float] = SCHEDULES["cosine"]
) -> float:
    """Return the learning-rate factor at ``progress`` in [0, 1]: a linear warm-up, then ``after``.

    It depends on progress, not on steps, since dynamic epochs differ in length.
    """
    if progress < warmup:
        return max(progress, 1e-3) / warmup
    return after((progress - warmup) / (1 - warmup))


def load_schedule(name: str) -> Callable[[float], float]:
    """Return a schedule by its name, or the function that ``file.py:Name`` names. Raises ConfigError if there is none."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    if ":" not in name:
        raise ConfigError(
            f"train.schedule is '{name}', but there is no such schedule. {nearest(name, SCHEDULES)} To use a function of your own, "
            "name it as file.py:Name."
        )
    found = load_function(name, "train.schedule")
    try:
        values = {at / 100: float(found(at / 100)) for at in range(101)}
    except Exception as error:  # of the user's code
        raise ConfigError(
            f"train.schedule: {name} raised {type(error).__name__} ({reason_of(error)})."
        ) from error
    for share, value in values.items():
        if not math.isfinite(value) or value < 0:
            raise ConfigError(
                f"train.schedule: {name} returned {value} when it was called with {share}; it must return a finite number of at "
                "least 0 for every share of the training from 0 to 1."
            )
    return found


def load_optimizer(
    spec: str | Mapping[str, Any], learning_rate: float
) -> Callable[..., torch.optim.Optimizer]:
    """Return a function of parameters that makes the optimizer.

    Parameters
    ----------
    spec : str or mapping
        Name of an optimizer of torch.optim, ``file.py:Name`` or ``package.module:Name``; or a mapping with such a name as
        ``method``, and arguments.

    Raises
    ------
    ConfigError
        If there is none, or it does not take the arguments.
    """
    arguments = {"method": spec} if isinstance(spec, str) else dict(spec)
    name = arguments.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"The key 'train.optimizer.method' is missing; name an optimizer, such as {', '.join(OPTIMIZERS.names()[:3])}."
        )
    cls = OPTIMIZERS.find(name, "train.optimizer", load_object)
    make = functools.partial(cls, **{"lr": learning_rate, **arguments})
    try:
        made = make([torch.nn.Parameter(torch.zeros(2, 2))])
    except Exception as error:  # torch raises TypeError and ValueError, other packages what they like
        raise ConfigError(f"train.optimizer: {name} cannot be made ({reason_of(error)}).") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            f"train.optimizer: {name} made a {type(made).__name__}, which is not a torch.optim.Optimizer."
        )
    if "lr" in arguments:
        raise ConfigError("train.optimizer.lr: Give the learning rate as train.learning_rate.")
    return make
