"""Find out whether an object can be used as a policy, before anything expensive starts."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np

from raysel.core.numbers import python_numbers
from raysel.dynamic.plan import Plan, Policy
from raysel.dynamic.state import SampleState
from raysel.errors import ConfigError

_METHODS = ("plan", "update", "parameters")


def check_policy(policy: Any, samples: int, num_epochs: int, seed: int) -> None:
    """Raise ConfigError unless ``policy`` is a policy that plans ``samples`` samples.

    A policy that is not raysel's own is tried: it plans the first two epochs, each twice, and updates the state
    with made-up losses. What its code raises is not caught.

    Parameters
    ----------
    policy : object
        The policy, aligned with the samples.
    samples, num_epochs, seed : int
        Those of the run.
    """
    if isinstance(policy, type):
        raise ConfigError(
            f"The policy is the class {policy.__name__}; give an instance, such as {policy.__name__}()."
        )
    name = type(policy).__name__
    if not isinstance(policy, Policy):
        missing = ", ".join(method for method in _METHODS if not callable(getattr(policy, method, None)))
        raise ConfigError(
            f"A policy needs the methods plan, update and parameters, but {name} has no {missing}; "
            "see raysel.dynamic.Policy, or use one such as raysel.InfoBatch()."
        )
    if type(policy).__module__.startswith("raysel."):
        return
    parameters: Any = getattr(type(policy), "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ConfigError(
            f"The policy {name} must be a frozen dataclass, because its plans must not depend on values that can change; write "
            f"@dataclass(frozen=True) above 'class {name}'."
        )
    state, slots = SampleState.empty(samples), np.zeros(1, np.int64)
    run = {"num_epochs": num_epochs, "seed": seed}
    _check_signature(policy, "plan", "(self, state, *, epoch, num_epochs, seed)", state, epoch=0, **run)
    _check_signature(policy, "update", "(self, state, plan, slots, losses)", state, None, slots, slots)
    for epoch in range(min(2, num_epochs)):
        plan, again = (policy.plan(state, epoch=epoch, **run) for _ in range(2))
        if not isinstance(plan, Plan):
            raise ConfigError(
                f"{name}.plan must return a raysel.dynamic.Plan, got a {type(plan).__name__} in epoch {epoch}."
            )
        if len(plan) == 0 and epoch == 0:
            raise ConfigError(
                f"{name}.plan returned an empty plan for epoch 0 of {samples:,} samples; it must plan at least one of them. "
                "Before epoch 0, no sample has a loss: all losses in the state are NaN."
            )
        if len(plan) and plan.slots[-1] >= samples:
            raise ConfigError(
                f"{name}.plan returned the slot {plan.slots[-1]} in epoch {epoch}, but there are {samples:,} "
                "samples; a slot is the position of a sample, counted from 0."
            )
        if not (np.array_equal(plan.slots, again.slots) and np.array_equal(plan.weights, again.weights)):
            raise ConfigError(
                f"{name}.plan returned two different plans for the same arguments in epoch {epoch}; draw random numbers with "
                "raysel.dynamic.plan.uniform, which depend only on the seed, the epoch and the sample."
            )
        state = policy.update(state, plan, plan.slots, np.linspace(0.5, 1.5, len(plan), dtype=np.float32))
        if not isinstance(state, SampleState) or len(state) != samples:
            found = (
                f"one of {len(state):,}" if isinstance(state, SampleState) else f"a {type(state).__name__}"
            )
            raise ConfigError(
                f"{name}.update must return a SampleState of {samples:,} samples, got {found}; "
                "raysel.dynamic.state.observe returns one."
            )
    described = python_numbers(policy.parameters())
    try:
        json.dumps(described)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name}.parameters must return numbers, text, lists and dicts, which JSON can hold ({error}); leave out "
            "arrays, or return their digest."
        ) from None
    if not isinstance(described, dict):
        raise ConfigError(f"{name}.parameters must return a dict, got a {type(described).__name__}.")


def _check_signature(policy: Any, method: str, signature: str, *arguments: Any, **named: Any) -> None:
    try:
        inspect.signature(getattr(policy, method)).bind(*arguments, **named)
    except TypeError as error:
        raise ConfigError(
            f"{type(policy).__name__}.{method} must be defined as {method}{signature}; it cannot be called "
            f"with these arguments ({error})."
        ) from None
