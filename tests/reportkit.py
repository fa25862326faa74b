"""Records, folders of runs and a study without any training, for tests of pages."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
import yaml

from densekd import files
from densekd.looks.pictures import ids_file, packed, photo_file
from densekd.looks.records import Answer, MapImage, MapsFile, PictureRow, PicturesFile, as_file
from densekd.looks.terms import TermLooks, look
from densekd.records import (
    BestScores,
    ConfusionRecord,
    Counts,
    Gain,
    NetworkCost,
    RunRecord,
    Scores,
    StudyCost,
    StudyMethod,
    StudyRecord,
    StudyScores,
    StudyTeacher,
    dump,
)

CLASSES = ("sky", "road", "tree")
HOSTILE = "<img src=x onerror=alert(1)>"
CLOSING = "</script><script>alert(2)</script>"


def scores(miou: float, names: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """Scores with the IoU of every class around their mean."""
    return {"miou": miou, "pixel_accuracy": 0.9, "iou": dict.fromkeys(names, miou), "images": 4}


def run_record(miou: float | None = 0.5, names: tuple[str, ...] = CLASSES, **changes: Any) -> RunRecord:
    """The record of a run of 40 steps."""
    found = {} if miou is None else {"final": Scores(**scores(miou, names))}
    if miou is not None:
        found["best"] = BestScores(**scores(miou, names), step=40)
    values = {"status": "done", "method": "channelwise", "seed": 0, "split": "val", "steps": 40, "epochs": 2.0}
    values |= {"student": NetworkCost(parameters=1_000_000, flops=2_000_000), "evaluation": "whole image"}
    return RunRecord(**{**values, **found, **changes})


def keep_run(
    folder: Path,
    record: RunRecord,
    recipe: dict[str, Any] | None = None,
    *,
    term: str = "channelwise",
    logged: bool = True,
) -> Path:
    """A run's folder with what a page reads; without a log and evaluations there is nothing to draw."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "record.json", dump(record))
    terms = [{"method": "channelwise", "student": "logits", "teacher": "logits", "weight": 3.0, "options": {}}]
    settings = {"name": folder.name, "data": {"name": "folder"}, "terms": terms, **(recipe or {})}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    if logged:
        _keep_log(folder, record, term)
    if record.final is not None:
        names = list(record.final.iou)
        counts = Counts(step=40, matrix=[[90 if i == j else 5 for j in range(len(names))] for i in range(len(names))])
        kept = ConfusionRecord(split="val", classes=names, final=counts, best=counts)
        (folder / "confusion.json").write_text(json.dumps(dump(kept)))
    return folder


def picture_files(count: int, size: tuple[int, int] = (48, 64)) -> dict[str, bytes]:
    """For a folder of looks: `count` images of noise, each with its truth and the answers of three networks."""
    generator = torch.Generator().manual_seed(0)
    rows, held = [], {}
    for place in range(count):
        names = {"image": f"image-{place}.jpg", "truth": f"truth-{place}.png"}
        names |= {key: f"{key}-{place}.png" for key in ("teacher", "alone", "distilled")}
        held[names["image"]] = photo_file(torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator))
        for key in ("truth", "teacher", "alone", "distilled"):
            blocks = torch.randint(0, 4, (size[0] // 8, size[1] // 8), generator=generator)
            ids = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)
            held[names[key]] = ids_file(ids, len(CLASSES))
        answers = {key: Answer(file=names[key], miou=0.5) for key in ("teacher", "alone", "distilled")}
        first: dict[str, Any] = {"image": names["image"], "truth": names["truth"]}
        first |= {"width": size[1], "height": size[0]}
        rows.append(PictureRow(index=place, name=f"{HOSTILE}{place}", why="one of all", answers=answers, **first))
    titles = {"teacher": "teacher", "alone": "student alone", "distilled": "distilled student"}
    colors = [(70, 130, 180), (128, 64, 128), (107, 142, 35)]
    record = PicturesFile(rule="all", classes=list(CLASSES), palette=colors, networks=titles, rows=rows)
    return {"pictures.json": as_file(record), "pictures.safetensors": packed(held)}


def map_files() -> dict[str, bytes]:
    """For a folder of looks: softened maps of two terms on two images, one of a method that does not soften."""
    generator = torch.Generator().manual_seed(0)
    names = [f"map-{place}.jpg" for place in range(2)]
    photos = {name: photo_file(torch.randint(0, 256, (3, 48, 64), generator=generator).byte()) for name in names}
    records, planes = [], {}
    for place, method in enumerate(("channelwise", "pixelwise")):
        teacher, before, noise = (3 * torch.randn(2, 3, 12, 16, generator=generator) for _ in range(3))
        students = {"before": before, "after": teacher + 0.2 * noise}
        found = {key: [look(own, given, 4.0, None) for own, given in zip(maps, teacher, strict=True)]
                 for key, maps in students.items()}  # fmt: skip
        term = TermLooks(
            f"{method}:logits", method, "logits", "logits", 4.0, place == 0, [HOSTILE, "road", "tree"], found
        )
        record, shown = term.settled(2, f"{place}")
        records.append(record)
        planes |= shown
    titles = {"teacher": "teacher", "before": "student before training", "after": "student after training"}
    images = [MapImage(index=place, name=f"{HOSTILE}{place}", file=name) for place, name in enumerate(names)]
    whole = MapsFile(rule="on 2 images", networks=titles, images=images, terms=records)
    return {"maps.json": as_file(whole), "maps.safetensors": packed(photos, planes)}


def _keep_log(folder: Path, record: RunRecord, term: str) -> None:
    rows = [f"step,loss,cross_entropy,{term},lr,grad_norm,seconds,data_wait"]
    for step in range(1, 41):
        loss = 2 * math.exp(-step / 10)
        rows.append(f"{step},{2 * loss},{loss},{loss},{0.01 * (1 - step / 41)},{'' if step == 1 else loss},0.2,0.01")
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    if record.final is not None:
        last = record.final.miou
        (folder / "evaluations.csv").write_text(f"step,miou,pixel_accuracy\n20,{last - 0.1},0.8\n40,{last},0.9\n")


def method(name: str, miou: list[float], gain: tuple[float, float, float] | None = None, **changes: Any) -> StudyMethod:
    """A method of a study with a score for each of the seeds 0, 1, ...; all three classes have its mean."""
    mean = sum(miou) / len(miou) if miou else None
    spread = None if mean is None else StudyScores(miou=miou, mean=mean, sd=0.01)
    values: dict[str, Any] = {
        "name": name,
        "where": "-" if name == "none" else "logits",
        "seeds": list(range(len(miou))),
        "steps": 40,
        "final": spread,
        "best": spread,
        "gain": None if gain is None else Gain(mean=gain[0], low=gain[1], high=gain[2], n=len(miou)),
        "iou": {} if mean is None else dict.fromkeys(CLASSES, mean),
        "iou_gain": {} if gain is None else dict(zip(CLASSES, (gain[0], 0.0, -0.02), strict=True)),
        "cost": StudyCost(seconds_per_step=0.2 if name == "none" else 0.3, peak_memory_bytes=2_000_000),
        "student": NetworkCost(parameters=1_000_000),
    }
    return StudyMethod(**{**values, **changes})


def study_record(*methods: StudyMethod, teacher: float | None = 0.7, **changes: Any) -> StudyRecord:
    """A study of these methods under a teacher of 4.2 million parameters."""
    return StudyRecord(
        **{
            "name": "study",
            "data": {"name": "folder"},
            "teacher": StudyTeacher(
                miou=teacher, iou={} if teacher is None else dict.fromkeys(CLASSES, teacher), parameters=4_200_000
            ),
            "methods": list(methods),
            "environment": {"torch": "2"},
            **changes,
        }
    )


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def handlers(self) -> list[str]:
        """Attributes that would run a script."""
        return [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
