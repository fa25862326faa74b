"""Training images checked against what the teacher saw when its maps were stored."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from densekd.data.views import TrainEntry, TrainView
from densekd.errors import DataError


class SeenView(Dataset[TrainEntry]):
    """A view whose images must have the fingerprints that were stored with the maps.

    Args:
        view: with a fixed number of views of each image.
        stored: int64 `(views, images)`: the fingerprints.
        where: the set they are of, for errors.
    """

    def __init__(self, view: TrainView, stored: Tensor, where: str) -> None:
        self.view, self.stored, self.where = view, stored, where

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: tuple[int, int]) -> TrainEntry:
        """As the view's own.

        Raises:
            DataError: the image is not what the teacher saw.
        """
        entry = self.view[key]
        view, index = entry["sample"].tolist()
        if entry["fingerprint"] != int(self.stored[view, index]):
            raise DataError(
                f"view {view} of image {self.view.source.name_of(index)!r} is not what the teacher saw when the maps "
                f"in {self.where} were stored: its file or its label, its decoding, or the installed torchvision has "
                "changed. Put that back, or remove the folder (`densekd cache prune`) and have the set built anew"
            )
        return entry
