"""Distillation in your own training loop: three lines are densekd's, the rest is PyTorch as you know it.

    python examples/plain_loop.py

Seconds on a CPU: tiny networks and drawn street scenes. The teacher here is untrained; load yours.
"""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise


def networks(classes: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A small student and a larger teacher; any two networks of PyTorch will do."""
    student = smp.PSPNet("mobilenet_v2", encoder_weights=None, encoder_depth=3, classes=classes, psp_out_channels=16)
    teacher = smp.PSPNet("resnet18", encoder_weights=None, encoder_depth=3, classes=classes, psp_out_channels=64)
    return student, teacher


def main(folder: Path, steps: int = 4) -> None:
    """Train for a few steps and save the student alone."""
    torch.manual_seed(0)
    scenes = ScenesSet("train", 16, (64, 96), seed=0)
    student, teacher = networks(len(scenes.classes))
    pairs = [scenes.load(index) for index in range(len(scenes))]
    loader = DataLoader([(image / 255.0, label) for image, label in pairs], batch_size=4, shuffle=True)

    images, _ = next(iter(loader))
    terms = [densekd.Term(ChannelWise(temperature=4.0), student="logits", teacher="logits", weight=3.0)]
    distiller = densekd.Distiller(student, teacher, terms, example=images[:2])
    print("\n".join(distiller.notices))

    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    distiller.train()
    for step, (images, labels) in zip(range(steps), loader, strict=False):
        out = distiller(images)
        task = F.cross_entropy(out.student, labels)
        loss = task + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: task {task.item():.3f}, {', '.join(f'{k} {v.item():.3f}' for k, v in out.parts.items())}")

    folder.mkdir(parents=True, exist_ok=True)
    save_file(distiller.student.state_dict(), folder / "student.safetensors")
    print(f"student: {folder / 'student.safetensors'}")


if __name__ == "__main__":
    main(Path("runs/plain-loop"))
