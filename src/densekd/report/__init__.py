"""Pages: a run, a study, or several runs side by side, each as one self-contained HTML file."""

from densekd.report.page import write_report as write_report
