"""Every method by the name that workflows use. Adding one takes its own file and a line here."""

from __future__ import annotations

from raysel.core.registry import Registry

SELECTORS = Registry(
    "selectors",
    {
        "gio": "raysel.gio.distributed:GIO",
        "density_ratio": "raysel.select.density_ratio:DensityRatio",
        "cluster_share": "raysel.select.cluster_share:ClusterShare",
        "nearest": "raysel.select.nearest:Nearest",
        "deduplicate": "raysel.select.deduplicate:Deduplicate",
        "k_center": "raysel.select.coverage:KCenter",
        "facility_location": "raysel.select.coverage:FacilityLocation",
        "herding": "raysel.select.coverage:Herding",
        "by_score": "raysel.select.by_score:ByScore",
        "random": "raysel.select.random:Random",
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
        "column": "raysel.data.embedders.column:stored_column",
        "pca": "raysel.data.embedders.pca:PCA",
        "hash": "raysel.data.embedders.hashed_text:hashed_text",
        "table": "raysel.data.embedders.table:TableFeatures",
        "sentence-transformers": "raysel.data.embedders.sentence_transformers:SentenceTransformers",
        "timm": "raysel.data.embedders.timm:Timm",
        "torchvision": "raysel.data.embedders.torchvision:Torchvision",
        "open_clip": "raysel.data.embedders.open_clip:OpenClip",
        "torch": "raysel.data.embedders.torch_network:TorchNetwork",
    },
)

TASKS = Registry(
    "tasks",
    {
        "classification": "raysel.train.tasks.classification:Classification",
        "regression": "raysel.train.tasks.regression:Regression",
        "language_model": "raysel.train.tasks.language_model:LanguageModel",
        "segmentation": "raysel.train.tasks.segmentation:Segmentation",
    },
)

LOOPS = Registry(
    "loops",
    {
        "huggingface": "raysel.train.adapters.frameworks:huggingface",
        "lightning": "raysel.train.adapters.frameworks:lightning",
    },
)

OPTIMIZERS = Registry(
    "optimizers",
    {
        name: f"torch.optim:{name}"
        for name in ("SGD", "AdamW", "Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop")
    },
)

TRACKERS = Registry(
    "trackers",
    {
        "tensorboard": "raysel.train.trackers:TensorBoard",
        "mlflow": "raysel.train.trackers:MLflow",
        "wandb": "raysel.train.trackers:WandB",
    },
)

# In the order in which a directory is tried: those first that take all of it.
FORMATS = Registry(
    "formats",
    {
        "delta": "raysel.data.formats.delta:Delta",
        "hugging-face": "raysel.data.formats.arrow_ipc:SavedDataset",
        "parquet": "raysel.data.formats.parquet:Parquet",
        "images": "raysel.data.formats.images:Images",
        "csv": "raysel.data.formats.csv:Csv",
        "json": "raysel.data.formats.json_lines:JsonLines",
        "arrow": "raysel.data.formats.arrow_ipc:ArrowIpc",
        "numpy": "raysel.data.formats.numpy_arrays:NumpyArrays",
        "webdataset": "raysel.data.formats.webdataset:WebDataset",
    },
)

METRICS = Registry(
    "metrics",
    {
        "volume": "raysel.gime.states:volume",
        "delay": "raysel.gime.times:delay",
        "scope": "raysel.gime.objects:scope",
        "granularity": "raysel.gime.objects:granularity",
        "variety": "raysel.gime.states:variety",
        "duration": "raysel.gime.times:duration",
        "sampling_rate": "raysel.gime.times:sampling_rate",
        "aggregation": "raysel.gime.links:aggregation",
        "coverage": "raysel.gime.mismatch:coverage",
        "distortion": "raysel.gime.states:distortion",
        "mismatch": "raysel.gime.mismatch:mismatch",
    },
)
