"""Distillation as a LightningModule. Needs `lightning` 2.6.6 or newer (`pip install "lightning>=2.6.6"`).

    python examples/lightning_module.py

Seconds on a CPU: tiny networks and drawn street scenes. The teacher here is untrained; load yours.
"""

from __future__ import annotations

from pathlib import Path

import lightning
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise


class Distilled(lightning.LightningModule):
    """The distiller is the module's only child: checkpoints hold `distiller.student.*` and `distiller.adapters.*`.

    The teacher is neither in them nor wrapped for distributed training, but moves with the module; calling
    `.train()` on the whole leaves it in evaluation mode.
    """

    def __init__(self, student: torch.nn.Module, teacher: torch.nn.Module, example: torch.Tensor) -> None:
        super().__init__()
        terms = [densekd.Term(ChannelWise(temperature=4.0), weight=3.0)]
        self.distiller = densekd.Distiller(student, teacher, terms, example=example)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        out = self.distiller(images)
        task = F.cross_entropy(out.student, labels)
        self.log_dict({"task": task, **out.parts}, prog_bar=True)
        return task + out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.distiller.parameters(), lr=1e-3)


def main(folder: Path, steps: int = 4) -> None:
    """Train for a few steps; leave Lightning's checkpoint and the student alone."""
    torch.manual_seed(0)
    scenes = ScenesSet("train", 16, (64, 96), seed=0)
    pairs = [scenes.load(index) for index in range(len(scenes))]
    loader = DataLoader([(image / 255.0, label) for image, label in pairs], batch_size=4, shuffle=True)
    options = {"encoder_weights": None, "encoder_depth": 3, "classes": len(scenes.classes)}
    student = smp.PSPNet("mobilenet_v2", psp_out_channels=16, **options)
    teacher = smp.PSPNet("resnet18", psp_out_channels=64, **options)

    module = Distilled(student, teacher, example=next(iter(loader))[0][:2])
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="auto",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    save_file(module.distiller.student.state_dict(), folder / "student.safetensors")
    print(f"checkpoint: {folder / 'last.ckpt'}\nstudent: {folder / 'student.safetensors'}")


if __name__ == "__main__":
    main(Path("runs/lightning"))
