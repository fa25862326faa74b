"""What a recipe says of the fast copy of its teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from densekd.spec import Spec


class EngineSpec(Spec):
    """How the frozen teacher is made fast: the options of `densekd.freeze_teacher`.

    What each changes in the teacher's maps is measured against the plain float32 teacher before the run.
    """

    fold_batchnorm: bool = Field(
        default=True, description="fold batch normalisations into the layers before them, where that is exact"
    )
    channels_last: bool = Field(default=True, description="weights and images in memory with the channels last")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="number format; auto: the fastest whose softened maps err by at most 1% and whose mIoU moves by at "
        "most 0.1 point, else float32; runtime.precision is the student's alone",
    )
    compile: bool = Field(default=False, description="torch.compile with frozen weights; needs a C++ compiler")
    cuda_graph: Literal["auto"] | bool = Field(
        default="auto", description="record and replay the forward pass as a CUDA graph; auto: on CUDA where it can be"
    )
    winograd: Literal["auto"] | bool = Field(
        default="auto",
        description="3x3 convolutions of stride 1 multiply a quarter as much, on the CPU in float32, at four times the "
        "memory of their weights besides; auto: where the teacher is at least 1.1 times as fast with it",
    )
    device: str | None = Field(
        default=None, min_length=1, description="a device of its own, for instance cuda:1; null: that of the run"
    )
    micro_batch: PositiveInt | None = Field(
        default=None, description="images run at once at most, where a whole batch does not fit; null: all"
    )
