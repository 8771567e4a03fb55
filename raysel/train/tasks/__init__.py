"""What a workflow trains: a task says which columns it reads, and makes the model, the batches, the losses and the metrics."""

from raysel.train.tasks.classification import Classification
from raysel.train.tasks.language_model import LanguageModel
from raysel.train.tasks.regression import Regression
from raysel.train.tasks.segmentation import Segmentation
from raysel.train.tasks.task import Facts, Task

__all__ = ["Classification", "Facts", "LanguageModel", "Regression", "Segmentation", "Task"]
