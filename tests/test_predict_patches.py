"""Landslide4Sense patches to masks and to the archive for the leaderboard."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from l4s_geo.cli import main
from l4s_geo.data.l4s import encode_image, encode_mask
from l4s_geo.models import registry, zoo
from l4s_geo.models.card import Card
from l4s_geo.normalize import Normalizer
from l4s_geo.submission import PatchOptions
from tests.conftest import DATA, needs_data

BANDS = ("B4", "B3", "B2")


class Brightness(torch.nn.Module):
    """Calls what is bright in B4 landslide."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([4.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x[:, :1] - 4)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and three patches: two with a bright square, one dark."""
    build = zoo.build
    monkeypatch.setattr(
        zoo, "build", lambda name, args, n: Brightness() if name == "Brightness" else build(name, args, n)
    )
    save_model(tmp_path / "model", BANDS)
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for number in (2, 7, 30):
        image = rng.integers(450, 551, (14, 128, 128)).astype(np.float32)
        if number != 7:
            image[3, 20:40, 50:80] += 1000
        (tmp_path / "in" / f"image_{number}.h5").write_bytes(encode_image(image))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_model(folder: Path, bands: tuple[str, ...]) -> None:
    folder.mkdir()
    networks = (registry.save_network(Brightness(), folder, "n", "Brightness", {}),)
    statistics = Normalizer(bands, (1e4,) * len(bands), (50.0,) * len(bands), "asinh").to_dict()
    thresholds = {"balanced": 0.5, "recall": 0.4, "precision": 0.6}
    Card("bright", "1", "Apache-2.0", networks, bands, "dn", "none", statistics, 10.0, thresholds, "none").save(folder)


def square() -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros((128, 128), np.uint8)
    mask[20:40, 50:80] = 1
    return mask


def run(*args: str) -> Result:
    given = () if "--model" in args else ("--model", "model")
    return CliRunner().invoke(main, ["predict-patches", *args, *given, "--device", "cpu", "-q"])


def refused(done: Result, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert not [word for word in ("error: ", *said) if word not in done.stderr], done.stderr


def masks(archive: Path) -> dict[str, Any]:
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        found = {}
        for name in file.namelist():
            with h5py.File(io.BytesIO(file.read(name))) as h5:
                assert list(h5) == ["mask"]
                found[name] = h5["mask"][()]
        return found


def test_the_archive_is_flat_and_holds_a_mask_for_every_patch() -> None:
    done = run("in", "--out", "o.zip", "--json")
    assert done.exit_code == 0, done.output
    found = masks(Path("o.zip"))
    assert list(found) == ["mask_2.h5", "mask_7.h5", "mask_30.h5"]
    assert {(m.dtype.name, m.shape) for m in found.values()} == {("uint8", (128, 128))}
    assert np.array_equal(found["mask_2.h5"], square())
    assert np.array_equal(found["mask_30.h5"], square())
    assert not found["mask_7.h5"].any()
    summary = json.loads(done.stdout)
    assert (summary["patches"], summary["with_landslides"], summary["threshold"]) == (3, 2, 0.5)
    assert summary["landslide_share"] == pytest.approx(2 * 600 / (3 * 128**2), abs=1e-6)
    assert "245" in summary["notes"][0]
    record = json.loads(Path("o.zip.json").read_text())
    assert record["normalization"]["pixels"] == 3 * 128**2  # one domain
    assert record["models"][0]["name"] == "bright"


def test_a_folder_gets_the_masks_and_the_archive() -> None:
    assert run("in", "--out", "masks").exit_code == 0
    assert sorted(p.name for p in Path("masks").iterdir()) == [
        "mask_2.h5",
        "mask_30.h5",
        "mask_7.h5",
        "submission.zip",
    ]
    with h5py.File("masks/mask_2.h5") as file:
        assert np.array_equal(file["mask"][()], square())
    assert np.array_equal(masks(Path("masks/submission.zip"))["mask_2.h5"], square())


def test_equal_runs_give_equal_archives_whatever_the_batch() -> None:
    for name, size in (("a.zip", "1"), ("b.zip", "2")):
        assert run("in", "--out", name, "--batch-size", size).exit_code == 0
    assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()


def test_a_calibration_changes_no_mask(place: Path) -> None:
    assert run("in", "--out", "a.zip").exit_code == 0
    card = Card.load(place / "model")
    card.calibrated({"method": "platt", "slope": 0.4, "intercept": -2.0}).save(place / "model")
    assert run("in", "--out", "b.zip").exit_code == 0
    assert Path("a.zip").read_bytes() == Path("b.zip").read_bytes()
    record = json.loads(Path("b.zip.json").read_text())
    assert record["models"][0]["calibration"]["slope"] == 0.4
    assert record["settings"]["threshold"] < 0.15


def test_masks_that_are_there_are_compared() -> None:
    for number in (2, 7, 30):
        Path(f"in/mask_{number}.h5").write_bytes(encode_mask(square()))
    done = run("in", "--out", "o.zip", "--json")
    summary = json.loads(done.stdout)
    assert (summary["precision"], summary["recall"]) == (1, pytest.approx(2 / 3, abs=1e-4))
    assert "F1 0.8" in run("in", "--out", "o2.zip").stdout


def test_options_of_the_command_are_those_of_the_library() -> None:
    command = main.get_command(click.Context(main), "predict-patches")
    assert command is not None
    fields = {f.name for f in dataclasses.fields(PatchOptions)}
    assert {p.name for p in command.params} - {"as_json", "quiet", "verbose"} == fields


def test_options_arrive() -> None:
    run("in", "--out", "all.zip", "--threshold", "0", "--tta")
    assert all(m.all() for m in masks(Path("all.zip")).values())
    assert json.loads(Path("all.zip.json").read_text())["settings"]["tta"] is True
    run("in", "--out", "model.zip", "--normalize", "model")  # centre far above: nothing is bright
    assert not any(m.any() for m in masks(Path("model.zip")).values())
    run("in", "--out", "recall.zip", "--preset", "recall")
    assert json.loads(Path("recall.zip.json").read_text())["settings"]["threshold"] == 0.4


def damaged() -> tuple[str, ...]:
    Path("in/image_30.h5").write_bytes(Path("in/image_30.h5").read_bytes()[:5000])
    return ("in",)


def alien() -> tuple[str, ...]:
    save_model(Path("alien"), ("B8A",))
    return ("in", "--model", "alien")


def empty() -> tuple[str, ...]:
    Path("nothing").mkdir()
    return ("nothing",)


@pytest.mark.parametrize("out", ["o.zip", "o"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (damaged, ("image_30.h5", "cannot be read")),
        (alien, ("B8A", "B1, B2")),
        (empty, ("nothing at all", "image_N.h5")),
        (lambda: ("absent",), ("no folder 'absent'",)),
        (lambda: ("in", "--model", "huge"), ("huge",)),
        (lambda: ("in", "--normalize", "none.json"), ("none.json",)),
    ],
)
def test_what_cannot_be_mapped_leaves_nothing(make: Any, said: tuple[str, ...], out: str, place: Path) -> None:
    args = make()
    before = sorted(p.name for p in place.iterdir())
    refused(run(*args, "--out", out), *said)
    assert sorted(p.name for p in place.iterdir()) == before


def test_nothing_is_replaced_unasked(place: Path) -> None:
    Path("o.zip").write_text("mine")
    refused(run("in", "--out", "o.zip"), "--overwrite")
    refused(run("in", "--out", "in"), "not empty")
    refused(run("in", "--out", "absent/o.zip"), "absent")
    assert Path("o.zip").read_text() == "mine"
    assert run("in", "--out", "o.zip", "--overwrite").exit_code == 0
    assert len(masks(Path("o.zip"))) == 3


@needs_data
def test_real_patches_with_the_bundled_model() -> None:
    done = run(str(DATA / "l4s_h5"), "--out", "o.zip", "--model", "l4s-rgb", "--json")
    assert done.exit_code == 0, done.output
    assert list(masks(Path("o.zip"))) == [f"mask_{n}.h5" for n in (31, 37, 39, 52, 55, 59)]
    assert 0 < json.loads(done.stdout)["landslide_share"] < 0.2
