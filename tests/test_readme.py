"""What the README tells people to type is what is tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raysel.core import storage

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]


def test_ci_runs_the_last_command_and_then_the_slow_tests():
    *_, begin, command, end, last = (ROOT / ".ci/run").read_text().splitlines()
    assert command == commands()[-1] and last == ".venv/bin/pytest -q -m slow"
    assert begin == "if ! {" and end.startswith("}; then exit 1; fi")  # no part of the chain may fail unseen


def test_the_first_command_runs_the_quickstart():
    first = commands()[0]
    assert first.startswith("python3 -m venv .venv && ") and first.endswith(
        "raysel run workflows/quickstart.yaml"
    )


@pytest.mark.slow  # a fit of Ray Train
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_the_training_example_runs_as_it_stands(cluster, tmp_path, s3, place):
    import torch

    runs = str(tmp_path) if place == "disk" else s3
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "TorchTrainer" in block
    )
    for written, here in (
        ("50_000", "96"),
        ("num_epochs=20", "num_epochs=2"),
        ("/shared/runs", runs),
    ):
        assert written in code
        code = code.replace(written, here)
    code = code.replace(
        "ScalingConfig(num_workers=2)", "ScalingConfig(num_workers=1)"
    )  # the suite's cluster is small
    data = torch.utils.data.TensorDataset(torch.randn(96, 4), torch.arange(96) % 3)
    scope = {"__name__": "__main__", "dataset": data, "make_model": lambda: torch.nn.Linear(4, 3)}
    exec(compile(code, "README.md", "exec"), scope)
    checkpoints = [name for name in storage.entries(f"{runs}/mine") if re.match(r"checkpoint_\d", name)]
    assert len(checkpoints) == 2
    assert all(storage.exists(f"{runs}/mine/{name}/selection-0-of-1.arrow") for name in checkpoints)
