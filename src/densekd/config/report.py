"""The `report` part of a recipe: how much a run keeps to be looked at."""

from __future__ import annotations

from pydantic import Field

from densekd.spec import Spec


class ReportSpec(Spec):
    """Pictures and softened maps under `looks/`, for the page of a run; they change nothing of the training."""

    images: int = Field(
        default=6, ge=0, le=24, description="validation images that are shown with truth and predictions; 0: none"
    )
    channels: int = Field(
        default=6, ge=0, le=24, description="channels of each term whose softened maps are shown; 0: none"
    )
