"""Pages: a run, a study, or several runs side by side, each as one self-contained HTML file."""

from densekd.report.write import REPORT as REPORT
from densekd.report.write import write_page as write_page
from densekd.report.write import write_report as write_report
from densekd.report.write import write_study_report as write_study_report
