"""Distillation into a network of your own that returns a list: `[out, aux1, aux2]`, deep supervision.

    python examples/own_network.py

Seconds on a CPU: small networks and drawn street scenes. The teacher here is untrained; load yours.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise

AUXILIARY = (0.4, 0.2)
"""Weights of the two auxiliary outputs in the task's loss."""


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Half the size, `outputs` channels."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Deep(nn.Module):
    """Three stages, each with a class map of its own; in evaluation mode the last one alone, at the image's size."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.head1, self.head2 = nn.Conv2d(width, classes, 1), nn.Conv2d(2 * width, classes, 1)
        self.head3 = nn.Conv2d(4 * width, classes, 1)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        first = self.stage1(images)
        second = self.stage2(first)
        logits = self.head3(self.stage3(second))
        out = F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return [out, self.head2(second), self.head1(first)] if self.training else out


def task_loss(outputs: list[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of all three; the labels come down to the size of the auxiliary maps."""
    total = F.cross_entropy(outputs[0], labels)
    for weight, output in zip(AUXILIARY, outputs[1:], strict=True):
        small = F.interpolate(labels[:, None].float(), size=output.shape[2:], mode="nearest")[:, 0].long()
        total = total + weight * F.cross_entropy(output, small)
    return total


def main(folder: Path, steps: int = 4) -> None:
    """Train for a few steps and save the student alone."""
    torch.manual_seed(0)
    scenes = ScenesSet("train", 16, (64, 96), seed=0)
    pairs = [scenes.load(index) for index in range(len(scenes))]
    loader = DataLoader([(image / 255.0, label.long()) for image, label in pairs], batch_size=4, shuffle=True)
    student, teacher = Deep(len(scenes.classes), 8), Deep(len(scenes.classes), 24)

    images, labels = next(iter(loader))
    terms = [
        # `output` is the first of a list. The map before the up-sampling is the head's, at an eighth of the size.
        densekd.Term(ChannelWise(), student="head3", teacher="head3", weight=3.0),
        # The others are `output[1]` and `output[2]`. The teacher runs in evaluation mode, where this network returns no
        # list and runs no auxiliary head: the student's auxiliary maps learn from the teacher's last one.
        densekd.Term(ChannelWise(), student="output[1]", teacher="head3", weight=1.0),
        densekd.Term(ChannelWise(), student="output[2]", teacher="head3", weight=0.5, name="early"),
    ]
    distiller = densekd.Distiller(student, teacher, terms, example=images[:2])
    report = densekd.preflight(distiller, (images, labels), task_loss)
    report.raise_if_failed()

    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    distiller.train()
    for step, (images, labels) in zip(range(steps), loader, strict=False):
        out = distiller(images)  # out.student is the student's own list
        loss = task_loss(out.student, labels) + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}, {', '.join(f'{k} {v.item():.3f}' for k, v in out.parts.items())}")

    folder.mkdir(parents=True, exist_ok=True)
    save_file(distiller.student.state_dict(), folder / "student.safetensors")
    print(f"student: {folder / 'student.safetensors'}")


if __name__ == "__main__":
    main(Path("runs/own-network"))
