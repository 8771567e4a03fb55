"""Every method by the name that workflows use. Adding one takes its own file and a line here."""

from __future__ import annotations

from raysel.core.registry import Registry

SELECTORS = Registry(
    "selectors",
    {
        "gio": "raysel.gio.distributed:GIO",
        "random": "raysel.baselines:Random",
    },
)

POLICIES = Registry(
    "policies",
    {
        "infobatch": "raysel.dynamic.infobatch:InfoBatch",
        "repdiv": "raysel.dynamic.repdiv:RepDiv",
        "random_prune": "raysel.dynamic.controls:RandomPrune",
        "random_subset": "raysel.dynamic.controls:RandomSubset",
        "round_robin": "raysel.dynamic.controls:RoundRobin",
        "full": "raysel.dynamic.controls:FullData",
    },
)

EMBEDDERS = Registry(
    "embedders",
    {
        "column": "raysel.data.embed:stored_column",
        "pca": "raysel.data.embed:PCA",
        "hash": "raysel.data.embed:hashed_text",
        "table": "raysel.data.embed:TableFeatures",
        "sentence-transformers": "raysel.data.models:sentence_transformer",
        "timm": "raysel.data.models:timm",
        "torchvision": "raysel.data.models:torchvision",
        "open_clip": "raysel.data.models:open_clip",
        "torch": "raysel.data.models:network",
    },
)

TASKS = Registry(
    "tasks",
    {
        "classification": "raysel.train.loops:classify",
    },
)
