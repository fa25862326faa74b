"""What brings a student map to the shape of a teacher map, and labels to the size of a map."""

from __future__ import annotations

from densekd.adapters.adapter import Adapter as Adapter
from densekd.adapters.adapter import keyed_seed as keyed_seed
from densekd.adapters.layout import Layout as Layout
from densekd.adapters.layout import find_layout as find_layout
from densekd.adapters.resize import nearest_resize as nearest_resize
