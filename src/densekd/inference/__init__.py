"""From images to class ids: in one piece or in windows, at one scale or at several, and mirrored."""

from densekd.inference.predictor import Predictor as Predictor
from densekd.inference.specs import WHOLE as WHOLE
from densekd.inference.specs import EvaluationSpec as EvaluationSpec
