from __future__ import annotations

import hashlib
import struct

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from densekd.models import weights_digest


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor([[1.0, 2.0]]))
        self.register_buffer("a", torch.tensor(3))
        self.register_buffer("passing", torch.zeros(1), persistent=False)


def test_by_hand() -> None:
    text = b"a\ntorch.int64\n()\n" + struct.pack("<q", 3) + b"b\ntorch.float32\n(1, 2)\n" + struct.pack("<2f", 1, 2)
    assert weights_digest(Two()) == hashlib.sha256(text).hexdigest()


def test_everything_of_a_tensor_counts() -> None:
    plain, other = Two(), Two()
    other.b.data[0, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    shaped, cast, named = Two(), Two().bfloat16(), nn.Module()
    shaped.b.data = shaped.b.data.reshape(2)
    named.b, named.c = plain.b, nn.Parameter(torch.tensor(3.0))
    assert len({weights_digest(one) for one in (plain, other, shaped, cast, named)}) == 5


def test_neither_layout_nor_mode_nor_a_file_counts(tmp_path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = weights_digest(network)
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    again = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert weights_digest(again) != before
    again.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert weights_digest(again.eval().to(memory_format=torch.channels_last)) == before
