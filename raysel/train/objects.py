"""Model, optimizer and scheduler in a checkpoint: complete, on the CPU, for any number of workers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from raysel.core.numbers import python_numbers
from raysel.errors import StateError


def state_dicts(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return each object's ``state_dict``, complete on rank 0; every rank calls it.

    What is sharded over ranks (FullyShardedDataParallel, ``fully_shard``) is gathered, together with an
    optimizer of sharded parameters, whose state is then keyed by the parameters' names. Its model must be
    among ``objects``.
    """
    saved = {}
    for name, value in objects.items():
        if not callable(getattr(value, "state_dict", None)):
            raise StateError(
                f"The state's '{name}' is a {type(value).__name__}, which has no state_dict(); give objects "
                "such as the model and the optimizer as state, and numbers as metrics."
            )
        if _sharded(value):
            whole, options = _whole(value)
            saved[name] = whole.get_model_state_dict(value, options=options)
        elif (model := _sharded_model(name, value, objects)) is not None:
            whole, options = _whole(model)
            saved[name] = whole.get_optimizer_state_dict(model, value, options=options)
        else:
            # A checkpoint is read without running code, and therefore without NumPy's types.
            saved[name] = python_numbers(_bare(value).state_dict())
    return saved


def load_state_dicts(objects: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Restore what :func:`state_dicts` returned, on any number of ranks, sharded or not.

    Every rank calls it.
    """
    for name, value in objects.items():
        if not callable(getattr(value, "load_state_dict", None)):
            raise StateError(
                f"restore: '{name}' is a {type(value).__name__}, which has no load_state_dict(); give the object that was saved "
                "under this name."
            )
        named = isinstance(value, torch.optim.Optimizer) and _keyed_by_name(saved[name])
        if _sharded(value):
            whole, options = _whole(value)
            whole.set_model_state_dict(value, saved[name], options=options)
        elif (model := _sharded_model(name, value, objects)) is not None or named:
            model = model or _owner(value, objects)
            if model is None or not named:
                raise StateError(
                    f"The optimizer '{name}' in the checkpoint belongs to a model that was {'sharded' if named else 'not sharded'}, "
                    "so it cannot be loaded here. Give restore the optimizer together with its model, and shard the model as it was "
                    "when the checkpoint was saved."
                )
            whole, options = _whole(model)
            whole.set_optimizer_state_dict(_bare(model), value, saved[name], options=options)
        else:
            try:
                _bare(value).load_state_dict(saved[name])
            except (RuntimeError, ValueError, KeyError) as error:  # torch's, of other names or shapes
                what = " ".join(str(error).split())
                raise StateError(
                    f"The checkpoint's '{name}' does not fit the {type(value).__name__} that was given to "
                    "restore; make the object in the same way as the run that saved the checkpoint "
                    f"({what[:300]})."
                ) from error


def _bare(value: Any) -> Any:
    """Return the module inside DistributedDataParallel, so that a checkpoint fits any number of workers."""
    wrapped = isinstance(value, torch.nn.parallel.DistributedDataParallel)
    return value.module if wrapped else value


def _whole(model: torch.nn.Module) -> tuple[Any, Any]:
    """Return torch's tools for state dicts of any sharding, and the options for complete ones on the CPU."""
    import torch.distributed.checkpoint.state_dict as tools  # takes 2 s to import: only where something is sharded

    # FullyShardedDataParallel on the CPU crashes (torch 2.13, a read after the free) when offloading to it.
    elsewhere = any(parameter.device.type != "cpu" for parameter in model.parameters())
    return tools, tools.StateDictOptions(full_state_dict=True, cpu_offload=elsewhere)


def _sharded(value: Any) -> bool:
    if not isinstance(value, torch.nn.Module):
        return False
    # Nothing is sharded by a module that nobody has imported.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    wrapped = fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in value.modules())
    return wrapped or any(map(_is_dtensor, value.parameters()))


def _is_dtensor(parameter: torch.Tensor) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(parameter, tensors.DTensor)


def _owner(optimizer: torch.optim.Optimizer, objects: Mapping[str, Any]) -> torch.nn.Module | None:
    """Return the module among ``objects`` that holds the optimizer's parameters."""
    mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    modules = [value for value in objects.values() if isinstance(value, torch.nn.Module)]
    return next((m for m in modules if mine <= {id(parameter) for parameter in m.parameters()}), None)


def _sharded_model(name: str, value: Any, objects: Mapping[str, Any]) -> torch.nn.Module | None:
    if not isinstance(value, torch.optim.Optimizer):
        return None
    owner = _owner(value, objects)
    if owner is None:
        if any(_is_dtensor(p) for group in value.param_groups for p in group["params"]):
            raise StateError(
                f"The optimizer '{name}' holds sharded parameters, but its model is not in the state; "
                "give both to session.restore and session.report."
            )
        return None
    return owner if _sharded(owner) else None


def _keyed_by_name(saved: Mapping[str, Any]) -> bool:
    return any(isinstance(key, str) for group in saved["param_groups"] for key in group["params"])
