"""What a run tells TensorBoard and Weights & Biases, by Accelerate's trackers."""

from densekd.runs.tracking.check import require_trackers as require_trackers
from densekd.runs.tracking.tracking import Tracking as Tracking
