"""Distillation under the Trainer of transformers, with two SegFormers. Needs the extra `hf`.

    python examples/hf_trainer.py

Seconds on a CPU: tiny networks from configurations, without a download, and drawn street scenes. In earnest:
`teacher = SegformerForSemanticSegmentation.from_pretrained(...)`, your own fine-tuned one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise


class Distilled(torch.nn.Module):
    """What the Trainer trains. Its `forward` names `pixel_values` and `labels`, so the Trainer hands over both.

    (The Trainer drops inputs that the signature of `forward` does not name; `Distiller.forward` takes any, and names
    none: given to the Trainer itself, it would lose its images unless `remove_unused_columns=False`.)
    """

    def __init__(self, distiller: densekd.Distiller) -> None:
        super().__init__()
        self.distiller = distiller

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.distiller(pixel_values=pixel_values)
        logits = F.interpolate(out.student.logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
        return {"loss": F.cross_entropy(logits, labels) + out.loss, "logits": out.student.logits}


class Scenes(Dataset[dict[str, torch.Tensor]]):
    """Drawn street scenes under the names that the Trainer passes on."""

    def __init__(self, scenes: ScenesSet) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, label = self.scenes.load(index)
        return {"pixel_values": image / 255.0, "labels": label}


def segformer(classes: int, widths: list[int]) -> SegformerForSemanticSegmentation:
    """A SegFormer with random weights and one block per stage."""
    shape: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = SegformerConfig(num_labels=classes, hidden_sizes=widths, decoder_hidden_size=2 * widths[0], **shape)
    return SegformerForSemanticSegmentation(config)


def main(folder: Path, steps: int = 4) -> None:
    """Train for a few steps; leave the Trainer's checkpoint and the student as transformers saves it."""
    torch.manual_seed(0)
    scenes = ScenesSet("train", 16, (64, 96), seed=0)
    student = segformer(len(scenes.classes), [8, 8, 16, 16])
    teacher = segformer(len(scenes.classes), [16, 16, 32, 32])
    data = Scenes(scenes)

    terms = [densekd.Term(ChannelWise(temperature=4.0), weight=3.0)]
    example = {"pixel_values": torch.stack([data[index]["pixel_values"] for index in range(2)])}
    distiller = densekd.Distiller(student, teacher, terms, example=example)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=steps,
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model=Distilled(distiller), args=arguments, train_dataset=data).train()
    distiller.student.save_pretrained(folder / "student")
    print(f"student: {folder / 'student'}")


if __name__ == "__main__":
    main(Path("runs/hf-trainer"))
