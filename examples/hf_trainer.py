"""Distillation under the Trainer of transformers, with two SegFormers. Needs the extra `hf`.

    python examples/hf_trainer.py

Seconds on a CPU: tiny networks from configurations, without a download, and drawn street scenes. In earnest:
`teacher = SegformerForSemanticSegmentation.from_pretrained(...)`, your own fine-tuned one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import EvalPrediction, SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise


class Scenes(Dataset[dict[str, Any]]):
    """Drawn street scenes. The Trainer drops `name` by itself: the signature of `ForTrainer.forward` has none."""

    def __init__(self, scenes: ScenesSet) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.scenes.load(index)
        return {"pixel_values": image / 255.0, "labels": label.long(), "name": self.scenes.name_of(index)}


def segformer(classes: int, widths: list[int]) -> SegformerForSemanticSegmentation:
    """A SegFormer with random weights and one block per stage."""
    shape: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    config = SegformerConfig(num_labels=classes, hidden_sizes=widths, decoder_hidden_size=2 * widths[0], **shape)
    return SegformerForSemanticSegmentation(config)


def task_loss(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the labels' size: a SegFormer's logits are a quarter of it."""
    logits = F.interpolate(output.logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=255)


def pixel_accuracy(found: EvalPrediction) -> dict[str, float]:
    """A metric as the Trainer takes it: of the student's logits, at their own size."""
    step = found.label_ids.shape[1] // found.predictions.shape[2]
    return {"pixel_accuracy": float(np.mean(found.predictions.argmax(1) == found.label_ids[:, ::step, ::step]))}


def main(folder: Path, steps: int = 4, resume: bool = False) -> None:
    """Train for a few steps; leave the Trainer's checkpoints and the student as transformers saves it."""
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
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=densekd.ForTrainer(distiller, task_loss),
        args=arguments,
        train_dataset=data,
        eval_dataset=Scenes(ScenesSet("val", 4, (64, 96), seed=0)),
        compute_metrics=pixel_accuracy,
    )
    trainer.train(resume_from_checkpoint=resume)
    print(trainer.evaluate())
    distiller.student.save_pretrained(folder / "student")
    print(f"student: {folder / 'student'}")


if __name__ == "__main__":
    main(Path("runs/hf-trainer"))
