"""`confusion.json` of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from densekd.records.base import Record


class Counts(Record):
    """The pixels of one evaluation."""

    step: int = Field(description="after which the evaluation was made")
    matrix: list[list[int]] = Field(description="pixels by true class (rows) and predicted class; void left out")


class ConfusionRecord(Record):
    """`confusion.json` of a run: what the scores in `record.json` were computed from."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this record")
    split: str = Field(description="that was evaluated")
    classes: list[str] = Field(description="names, in the order of rows and columns")
    final: Counts = Field(description="of the newest evaluation; of a finished run, the last step")
    best: Counts | None = Field(
        default=None, description="of the one with the highest mIoU; null: of a resumed run whose version kept none"
    )

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _square(self) -> ConfusionRecord:
        size = len(self.classes)
        for counts in filter(None, (self.final, self.best)):
            if len(counts.matrix) != size or any(len(row) != size for row in counts.matrix):
                raise ValueError(f"expected {size} rows of {size} counts, one for each class")
        return self
