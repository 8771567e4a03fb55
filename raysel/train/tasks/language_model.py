"""Causal language model: the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from raysel.core.parameters import check_fields
from raysel.core.registry import nearest
from raysel.data.store import Column, described
from raysel.errors import ConfigError, DataError, reason_of
from raysel.train.tasks.classification import check_shape
from raysel.train.tasks.inputs import outputs, tokens, vocabulary
from raysel.train.tasks.task import Facts


@dataclass(frozen=True)
class LanguageModel:
    """Predict the next token of a text; the metric is the perplexity per token.

    The model comes from ``pretrained``, from ``config``, or from the function ``(vocabulary, max_length)`` that ``train.model``
    names. It is called with ``input_ids`` and ``attention_mask``, and returns logits (B, T, vocabulary), or an object that
    has them as ``logits``, as models of Hugging Face do. The loss of a text is the mean over its tokens.

    Parameters
    ----------
    input : str
        Column with the text.
    tokenizer : str
        A local folder with a tokenizer of Hugging Face, or ``bytes`` for the bytes of the text (258 different
        tokens).
    max_length : int
        Largest number of tokens of a text; the rest is cut off.
    pretrained : str, optional
        Local folder with a causal language model of Hugging Face, which is trained further.
    config : mapping
        Configuration of a model of Hugging Face that is trained from its initial weights: ``model_type`` and the
        arguments of its configuration class.
    """

    input: str
    tokenizer: str = "bytes"
    max_length: Annotated[int, Field(ge=2)] = 128
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    metric: ClassVar[str] = "perplexity"
    direction: ClassVar[Literal["max", "min"]] = "min"
    classes: ClassVar[str | None] = None
    paths: ClassVar[tuple[str, ...]] = ("tokenizer", "pretrained")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.pretrained is not None and self.config:
            raise ConfigError(
                "config: The keys 'pretrained' and 'config' cannot be given together; remove one of them."
            )
        if self.config and not isinstance(self.config.get("model_type"), str):
            raise ConfigError(
                "config: The key 'model_type' is missing; name the type of model, such as 'gpt2'."
            )

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        return [self.input]

    def check_columns(self, columns: Mapping[str, Column]) -> None:
        """Raise DataError unless the column holds text."""
        held = columns[self.input]
        if held.kind != "text":
            raise DataError(
                f"train.input: Column '{self.input}' holds {described(held)}, but a language model reads text."
            )

    def model(self, facts: Facts) -> torch.nn.Module:
        """Return the model."""
        if facts.factory is not None:
            if self.pretrained is not None or self.config:
                raise ConfigError(
                    "train.model: The model also comes from train.task.pretrained or train.task.config; give one of them."
                )
            made: torch.nn.Module = facts.factory(vocabulary(self.tokenizer), self.max_length)
            return made
        if self.pretrained is None and not self.config:
            raise ConfigError(
                "train.task: The model is missing; give train.task.pretrained, train.task.config or train.model."
            )
        if self.pretrained is not None and not Path(self.pretrained).is_dir():
            raise ConfigError(
                f"train.task.pretrained: There is no folder {self.pretrained}; give a local folder with a model of Hugging Face."
            )
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError as error:
            raise ConfigError(
                "train.task: The task language_model needs the package transformers for this model; install raysel[huggingface]."
            ) from error
        codes = vocabulary(self.tokenizer)
        try:
            if self.pretrained is not None:
                found = AutoModelForCausalLM.from_pretrained(self.pretrained, local_files_only=True)
            else:
                known = AutoConfig.for_model(self.config["model_type"])
                for name in self.config:
                    if not hasattr(known, name):  # which Hugging Face would accept
                        raise ConfigError(
                            f"train.task.config: A model of the type {known.model_type} has no '{name}'. "
                            f"{nearest(name, known.to_dict())}"
                        )
                options = {"vocab_size": codes, "bos_token_id": None, "eos_token_id": None, **self.config}
                found = AutoModelForCausalLM.from_config(AutoConfig.for_model(**options))
        except ConfigError:
            raise
        except Exception as error:  # of a configuration or damaged files anything
            key = "config" if self.pretrained is None else "pretrained"
            raise ConfigError(f"train.task.{key}: The model cannot be made ({reason_of(error)}).") from error
        for name, needed, what in (
            ("vocab_size", codes, "codes of the tokenizer"),
            ("max_position_embeddings", self.max_length, "tokens of train.task.max_length"),
        ):
            held = getattr(found.config, name, None)
            if held is not None and held < needed:
                advice = (
                    "use a model and a tokenizer that belong together"
                    if name == "vocab_size"
                    else "lower train.task.max_length, or use another model"
                )
                raise ConfigError(
                    f"train.task: The model has {name} = {held:,}, which is less than the number of {what} ({needed:,}); {advice}."
                )
        return found

    def collate(self, rows: Mapping[str, np.ndarray], generator: torch.Generator | None = None) -> Any:
        """Return ``input_ids`` and ``attention_mask``."""
        return tokens(rows[self.input].tolist(), self.tokenizer, self.max_length)

    def check(self, model: torch.nn.Module, batch: Any, facts: Facts) -> None:
        """Raise ConfigError unless the model returns one logit per token and code, none of which depends on a later token."""
        made = outputs(model, batch)
        wanted = tuple(batch["input_ids"].shape)
        count = made.shape[-1] if isinstance(made, torch.Tensor) and made.ndim else 0
        check_shape(
            made,
            (*wanted, max(count, vocabulary(self.tokenizer))),
            "one logit per token and code of the tokenizer",
        )
        changed = batch["input_ids"].clone()
        changed[:, -1] = (
            changed[:, -1] + 1
        ) % 2  # codes that every tokenizer has; the longest text has this token
        training = model.training
        model.eval()
        with torch.no_grad():
            first, second = (
                outputs(model, {**batch, "input_ids": ids})[:, :-1] for ids in (batch["input_ids"], changed)
            )
        model.train(training)
        if first.numel() and float((first - second).abs().max()) > 1e-5 * float(first.abs().max()):
            raise ConfigError(
                "train.model: A logit of the model depends on a later token, so the model can read the token that it should "
                "predict; use a causal model."
            )

    def losses(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy of every next token (B, T - 1), and which tokens are not padding."""
        logits = outputs(model, batch)[:, :-1]
        wanted, counts = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].bool()
        losses = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), reduction="none")
        return losses.view(wanted.shape), counts

    def sums(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        """Return the sum of the losses over tokens, and the number of tokens."""
        losses, counts = self.losses(model, batch)
        return {"losses": torch.where(counts, losses, 0.0).double().sum(), "tokens": counts.sum()}

    def metrics(self, sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Return the perplexity per token, and its logarithm, the mean loss."""
        loss = float(sums["losses"] / sums["tokens"])
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
