"""A student opened as the network of its own library: from a safetensors file or a hub folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densekd.errors import ExportError
from densekd.export.exported import check_images
from densekd.export.manifest import Manifest
from densekd.export.torch_threads import torch_threads
from densekd.taps import main_output


@dataclass
class TorchStudent:
    """A student as a network of torch, with the words of every exported file.

    Attributes:
        network: of its own library, in eval mode.
    """

    path: Path
    manifest: Manifest
    network: nn.Module
    device: torch.device
    threads: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self.manifest, self.path)
        with torch.inference_mode(), torch_threads(self.threads):
            logits = main_output(self.network(images.to(self.device))).float()
            if logits.shape[-2:] != images.shape[-2:]:
                logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        return logits.cpu()


def placed(path: Path, manifest: Manifest, network: nn.Module, device: str, threads: int | None) -> TorchStudent:
    """The network on a device.

    Raises:
        ExportError: torch does not see the device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device cuda: torch sees no CUDA device; use cpu")
    target = torch.device(device)
    return TorchStudent(path, manifest, network.to(target), target, threads)
