"""Segment images and videos with a student: masks, overlays and coverage, or the files of a benchmark's server."""

from densekd.predict.opening import open_student as open_student
from densekd.predict.result import Prediction as Prediction
from densekd.predict.result import VideoPrediction as VideoPrediction
from densekd.predict.segment import predict as predict
