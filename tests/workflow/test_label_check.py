"""Labels to check after a training: the ranking in the run directory, and what the results say of it."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysel.data.vectors import to_column
from raysel.select import label_check
from raysel.select.matches import Matches
from raysel.workflow.config import parse
from raysel.workflow.directory import Done, Progress, open_run, read_table
from raysel.workflow.run import _labels
from raysel.workflow.steps import Embed, Labels, Select, plan
from raysel.workflow.steps.labels import RANKING
from tests.train.rows import logged


def test_wrong_labels_are_ranked_first(tmp_path, cluster):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8)) * 4
    truth = rng.integers(0, 4, 300)
    vectors = (centres[truth] + rng.normal(size=(300, 8))).astype(np.float32)
    vectors[5] = np.nan
    wrong = np.array([3, 40, 41, 150, 299])
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + 1) % 4
    names = np.array(["a", "b", "c", "d"])[labels]
    losses = rng.uniform(0, 0.5, 300).astype(np.float32)
    losses[wrong] = 3
    table = {"x": to_column(vectors), "text": [f"row {i}" for i in range(300)], "label": names}
    pq.write_table(pa.table(table), tmp_path / "pool.parquet", row_group_size=50)
    rows = np.setdiff1d(np.arange(300), [5, 17])
    for number, (kept, told) in enumerate(((rows, ""), (np.arange(300), "No labels are checked: "))):
        (tmp_path / "pick.py").write_text(
            "import numpy as np\nimport raysel\n\nclass Pick:\n    def select(self, pool):\n"
            f"        return raysel.Selection.of(np.array({kept.tolist()}))\n"
        )
        tree = {
            "name": "labels",
            "pool": {"path": "pool.parquet", "label": "label"},
            "embed": {"column": "x", "on_error": "null"},
            "select": {"method": "pick.py:Pick"},
            "train": {"model": "pick.py:make", "input": "text"},
            "dynamic": {"method": "repdiv"},
        }
        stream = StringIO()
        with open_run(parse(tree, tmp_path), tmp_path / f"run{number}", Progress(stream)) as run:
            folder = run.out / "steps" / "train-chain-0"
            folder.mkdir(parents=True)
            spared = np.where(kept == 50, np.nan, losses[kept]).astype(np.float32)
            logged(folder, kept, spared)
            run.finished["train-chain"] = Done(folder, {"epochs": [{}]}, 0.0)
            steps = plan(run.workflow)
            assert isinstance(steps[-1], Labels)
            for step in steps:
                if isinstance(step, (Embed, Select, Labels)):
                    done = run.do(step)
            found = _labels(run)
        assert told in stream.getvalue()
        if told:
            assert found is None and done.answer == {}
            continue
        seen = np.setdiff1d(kept, [50])
        assert (found.rows, found.ranked) == (
            297,
            148,
        ) and found.file == f"steps/{done.directory.name}/{RANKING}"
        ranking = read_table(done.directory / RANKING)
        assert sorted(ranking["sample_id"].to_pylist()[:5]) == wrong.tolist()
        assert {(one.id, one.text) for one in found.samples[:5]} == {(i, f"row {i}") for i in wrong.tolist()}
        right = {i: "abcd"[truth[i]] for i in wrong.tolist()}
        assert {one.id: one.neighbours for one in found.samples[:5]} == right
        assert {one.id: one.label for one in found.samples[:5]} == {i: names[i] for i in wrong.tolist()}
        tried = label_check.candidates(seen, losses[seen])
        lists = Matches(vectors[tried], 11).add(seen, vectors[seen]).lists()[0]
        wanted = label_check.rank(seen, losses[seen], names[seen], tried, label_check.others(tried, lists))
        assert ranking.to_pydict() == {name: values.tolist() for name, values in wanted.items()}
        other = (wanted["label"] != wanted["neighbour_label"]) & (wanted["score"] > 0)
        assert found.other == other.sum() >= 5
