"""Segment images with the student of a run: masks and overlays, or the files that a benchmark's server wants."""

from densekd.predict.result import Prediction as Prediction
from densekd.predict.segment import predict as predict
