"""The `report` part of a recipe: what a run leaves to be looked at."""

from __future__ import annotations

from pydantic import Field

from densekd.spec import Spec


class ReportSpec(Spec):
    """A run's page, and what it keeps under `looks/` for it; they change nothing of the training."""

    page: bool = Field(
        default=True, description="whether a run ends with its page, report.html; `densekd report` writes it any time"
    )
    images: int = Field(
        default=6, ge=0, le=24, description="validation images that are shown with truth and predictions; 0: none"
    )
    channels: int = Field(
        default=6, ge=0, le=24, description="channels of each term whose softened maps are shown; 0: none"
    )
