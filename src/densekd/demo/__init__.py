"""The demo: scenes, a teacher, a student alone, the same student distilled; a table and a figure."""

from densekd.demo.run import DemoResult as DemoResult
from densekd.demo.run import run_demo as run_demo
