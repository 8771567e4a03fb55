"""Train a small language model on WordNet's glosses under the Hugging Face Trainer, with InfoBatch and controls.

    apt install wordnet-base && pip install 'raysel[huggingface]'
    python workflows/wordnet_lm.py [--rows 6000] [--epochs 8] [--batch-size 32] [--seed 0] [--out DIR]

A GPT-2 of two layers is trained from scratch on ``--rows`` random glosses and scored on 2,000 others. The tokens are the
2,000 most frequent words of the training glosses; rarer words share the token <unk>. Nothing is downloaded. The loss of a
gloss is the mean over its tokens. Four trainings start from the same weights with the same learning rate, which decays
over the steps that each of them takes:

- ``full``: every gloss in every epoch
- ``infobatch``: InfoBatch as published (prune_ratio 0.5, delta 0.875)
- ``random``: leaves out as many glosses as InfoBatch, drawn at random, in the same epochs and with the same rescaling
- ``full, equal steps``: every gloss in every epoch, but stopped after as many steps as InfoBatch took

The script prints a table: samples trained on, their share of those of ``full``, steps, perplexity per token on the held-out
glosses, and seconds. With ``--out`` it also writes ``wordnet_lm.json`` there.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainingArguments
from transformers.utils import logging
from wordnet import SOURCE, glosses

from raysel import DynamicSelection, FullData, InfoBatch, RandomPrune
from raysel.train.adapters.huggingface import SelectingTrainer, language_model_losses

HELD_OUT = 2000
WORDS, LENGTH = 2000, 32
PAD, BEGIN, UNKNOWN = 0, 1, 2
WIDTH, LAYERS, HEADS = 64, 2, 2
LEARNING_RATE = 3e-3


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[^\sa-z]", text.lower())


def tokens(texts: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Return int64 (n, LENGTH + 1): the start token, then the words, cut or padded."""
    table = np.full((len(texts), LENGTH + 1), PAD, np.int64)
    table[:, 0] = BEGIN
    for row, text in zip(table, texts, strict=True):
        numbers = [vocabulary.get(word, UNKNOWN) for word in words_of(text)[:LENGTH]]
        row[1 : 1 + len(numbers)] = numbers
    return table


def collate(rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Return a batch that is as long as its longest gloss."""
    ids = torch.from_numpy(np.stack(rows))
    ids = ids[:, : int((ids != PAD).sum(dim=1).max())]
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": ids.masked_fill(ids == PAD, -100),
    }


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, table: np.ndarray) -> float:
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(table), 250):
        batch = collate(list(table[start : start + 250]))
        labels = batch.pop("labels")
        losses, counted = language_model_losses(model(**batch), labels)
        total += float(losses.sum())  # 0 at padding
        count += int(counted.sum())
    return math.exp(total / count)


def train(dynamic: DynamicSelection, table: np.ndarray, options: argparse.Namespace) -> tuple:
    """Return the trained model, the history of the session and the seconds."""
    torch.manual_seed(options.seed)  # the same weights in every run
    config = GPT2Config(
        vocab_size=WORDS + 3,
        n_positions=LENGTH + 1,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=BEGIN,
        eos_token_id=PAD,
    )
    model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory(prefix="raysel-") as directory:
        arguments = TrainingArguments(
            directory,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            seed=options.seed,
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SelectingTrainer(
            model,
            arguments,
            train_dataset=list(table),
            data_collator=collate,
            compute_loss_func=language_model_losses,
            dynamic=dynamic,
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        trainer.train()
    return model, trainer.driven.session.history, time.perf_counter() - began


def as_many(share: float, epochs: int) -> RandomPrune:
    """Return random pruning that trains on ``share`` of all samples and prunes in the epochs of InfoBatch."""
    pruning = math.floor(0.875 * epochs) - 1  # the first epoch is full
    return RandomPrune((1 - share) * epochs / pruning, share=1.0) if pruning > 0 else RandomPrune(0.0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Train a small language model on WordNet's glosses, with InfoBatch and controls."
    )
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder with data.noun and the others")
    parser.add_argument("--rows", type=int, default=6_000, help="number of glosses to train on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for wordnet_lm.json")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # more threads do not speed up so small a model

    texts = np.array(glosses(options.source)[0])
    drawn = np.random.default_rng(options.seed).permutation(len(texts))
    learn = texts[drawn[HELD_OUT : HELD_OUT + options.rows]].tolist()
    counted = collections.Counter(word for text in learn for word in words_of(text))
    vocabulary = {word: number for number, (word, _) in enumerate(counted.most_common(WORDS), start=3)}
    table, held_out = tokens(learn, vocabulary), tokens(texts[drawn[:HELD_OUT]].tolist(), vocabulary)

    def run(name: str, policy, max_steps: int | None = None) -> dict:
        dynamic = DynamicSelection.local(
            policy, len(table), num_epochs=options.epochs, seed=options.seed, max_steps=max_steps
        )
        model, history, seconds = train(dynamic, table, options)
        row = {
            "run": name,
            "samples": sum(entry["trained"] for entry in history),
            "steps": sum(entry["steps"] for entry in history),
            "perplexity": perplexity(model, held_out),
            "seconds": seconds,
        }
        row["share"] = row["samples"] / (options.epochs * len(table))
        print(
            f"{name:18} {row['samples']:9,} {row['share']:7.1%} {row['steps']:7,} {row['perplexity']:11.2f} "
            f"{row['seconds']:8.1f}",
            flush=True,
        )
        return row

    print(f"{len(table):,} glosses, {options.epochs} epochs, seed {options.seed}")
    print(f"{'run':18} {'samples':>9} {'share':>7} {'steps':>7} {'perplexity':>11} {'seconds':>8}")
    rows = [run("full", FullData()), run("infobatch", InfoBatch())]
    rows.append(run("random", as_many(rows[1]["share"], options.epochs)))
    rows.append(run("full, equal steps", FullData(), rows[1]["steps"]))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        report = {**vars(options), "source": str(options.source), "out": str(options.out), "runs": rows}
        (options.out / "wordnet_lm.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
