"""The student of a run as a file that runs without densekd."""

from densekd.export.exported import Exported as Exported
from densekd.export.load import load_exported as load_exported
from densekd.export.manifest import Manifest as Manifest
from densekd.export.options import Int8Options as Int8Options
from densekd.export.run import export_run as export_run
