"""Distillation in your own script on Accelerate: accumulation, checkpoints, and the student out of it.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py

Seconds on a CPU: tiny networks and drawn street scenes. The teacher here is untrained; load yours.
"""

from __future__ import annotations

from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import densekd
from densekd.data.scenes import ScenesSet
from densekd.losses import ChannelWise


def main(folder: Path, steps: int = 4, resume: bool = False) -> None:
    """Take `steps` steps of two batches each, or go on to them; leave a checkpoint and the student."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    scenes = ScenesSet("train", 16, (64, 96), seed=0)
    pairs = [scenes.load(index) for index in range(len(scenes))]
    loader = DataLoader([(image / 255.0, label.long()) for image, label in pairs], batch_size=4)
    options = {"encoder_weights": None, "encoder_depth": 3, "classes": len(scenes.classes)}
    student = smp.PSPNet("mobilenet_v2", psp_out_channels=16, **options)
    teacher = smp.PSPNet("resnet18", psp_out_channels=64, **options)

    # On a feature map too: its channels differ, so that the distiller has an adapter, which checkpoints must hold.
    terms = [
        densekd.Term(ChannelWise(temperature=4.0), weight=3.0),
        densekd.Term(ChannelWise(temperature=4.0), student="decoder", teacher="decoder", weight=10.0),
    ]
    distiller = densekd.Distiller(student, teacher, terms, example=next(iter(loader))[0][:2])
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)
    # The teacher is no sub-module: `prepare` moves it to the device, and wraps and synchronises it nowhere.
    distiller, optimizer, loader = accelerator.prepare(distiller, optimizer, loader)

    taken = 0
    if resume:
        accelerator.load_state(str(folder / "state"))
        taken = int((folder / "steps").read_text())
    distiller.train()
    while taken < steps:
        for images, labels in loader:
            with accelerator.accumulate(distiller):
                out = distiller(images)
                loss = F.cross_entropy(out.student, labels) + out.loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            taken += accelerator.sync_gradients
            if taken == steps:
                break
    accelerator.save_state(str(folder / "state"))
    plain = accelerator.unwrap_model(distiller)
    if accelerator.is_main_process:
        (folder / "steps").write_text(str(taken))
        save_file(plain.student.state_dict(), folder / "student.safetensors")
        print(f"checkpoint: {folder / 'state'}\nstudent: {folder / 'student.safetensors'}")


if __name__ == "__main__":
    main(Path("runs/accelerate"))
