"""What a training run leaves behind while it runs: log, curve, checkpoint."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Record:
    """One line of the log; ``scores`` holds figures by split."""

    step: int
    minutes: float
    learning_rate: float
    loss: float
    patches_per_s: float
    scores: dict[str, dict[str, float]]

    def row(self) -> dict[str, str]:
        """Flat and rounded."""
        values = {
            "step": f"{self.step}",
            "minutes": f"{self.minutes:.1f}",
            "learning_rate": f"{self.learning_rate:.2e}",
            "loss": f"{self.loss:.4f}",
            "patches_per_s": f"{self.patches_per_s:.1f}",
        }
        for split, figures in self.scores.items():
            values |= {f"{split} {name}": f"{value:.4f}" for name, value in figures.items()}
        return values


class Log:
    """A CSV that grows by a line a validation; an existing one is continued when ``keep`` is set."""

    def __init__(self, path: Path, keep: bool) -> None:
        self.path = path
        if not keep:
            path.unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        """Append a line."""
        row = record.row()
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as f:
            writer = csv.DictWriter(f, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; a killed run leaves the previous one."""
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint: tensors and numbers only, no code."""
    found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return found


def plot(log: Path, picture: Path) -> None:
    """Loss and F1 over steps as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not log.exists():
        return
    with log.open(newline="") as f:
        rows = list(csv.DictReader(f))
    steps = [int(r["step"]) for r in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    left.plot(steps, [float(r["loss"]) for r in rows], color="0.5", label="loss")
    left.set(xlabel="step", ylabel="loss")
    right = left.twinx()
    for name in rows[0]:
        if name.endswith(" f1"):
            right.plot(steps, [float(r[name]) for r in rows], marker=".", label=name)
    right.set(ylabel="best F1", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(picture, dpi=110)
