"""Classify texts with all-MiniLM-L6-v2, whose weights are in ``data/minilm`` next to this file (see wordnet_minilm.yaml).

``frozen`` trains only the last layer; ``fine_tuned`` trains all weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent / "data" / "minilm"


class SentenceClassifier(nn.Module):
    """A linear layer on the mean of the encoder's token vectors; called as ``model(input_ids=..., attention_mask=...)``."""

    def __init__(self, classes: int, frozen: bool) -> None:
        super().__init__()
        from transformers import AutoModel

        self.encoder = AutoModel.from_pretrained(FOLDER, local_files_only=True)
        self.encoder.requires_grad_(not frozen)
        self.frozen = frozen
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def train(self, mode: bool = True) -> SentenceClassifier:
        """Set the mode; a frozen encoder is always evaluated, so it has no dropout."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[..., None].to(states.dtype)
        logits: torch.Tensor = self.head((states * counts).sum(dim=1) / counts.sum(dim=1))
        return logits


def frozen(length: tuple[int, ...], classes: int) -> nn.Module:
    """Return a classifier whose encoder keeps its weights."""
    return SentenceClassifier(classes, frozen=True)


def fine_tuned(length: tuple[int, ...], classes: int) -> nn.Module:
    """Return a classifier whose encoder is trained too."""
    return SentenceClassifier(classes, frozen=False)
