"""Train a small network on FashionMNIST for one epoch; its last hidden layer then computes the vectors.

    python workflows/fashion_mnist.py && python workflows/fashion_embed.py

The script trains ``models.small_cnn`` on ``data/fashion_mnist/pool.parquet``, junk included, and writes the weights to
``small_cnn.pt`` in the same folder. ``fashion_embed.yaml`` embeds with ``trained:penultimate``, the 128 activations
before the layer of the classes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "fashion_mnist"
WEIGHTS = DATA / "small_cnn.pt"
SHAPE, CLASSES = (1, 28, 28), 10
BATCH, LEARNING_RATE, SEED = 64, 0.05, 0


def untrained() -> nn.Module:
    sys.path.insert(0, str(HERE))
    from models import small_cnn

    return small_cnn(SHAPE, CLASSES)


def trained() -> nn.Module:
    """Return the network with the weights that this script has written."""
    model = untrained()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model


def main() -> None:
    table = pq.read_table(DATA / "pool.parquet", columns=["pixels", "label"])
    pixels = torch.from_numpy(table["pixels"].combine_chunks().to_numpy_ndarray().copy())
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    torch.manual_seed(SEED)
    model = untrained()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    for rows in torch.randperm(len(labels)).split(BATCH):
        loss = nn.functional.cross_entropy(model(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    partial = WEIGHTS.with_name(f".{WEIGHTS.name}.{os.getpid()}.tmp")
    torch.save(model.state_dict(), partial)
    os.replace(partial, WEIGHTS)
    print(f"{WEIGHTS}: one epoch over {len(labels):,} images, last loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
