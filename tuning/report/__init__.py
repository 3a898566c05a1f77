"""The report of a run: what is said of it, its figures, and the pages that show both."""

from tuning.report.content import report_content
from tuning.report.figures import ReportFigure, report_figures
from tuning.report.pages import index_page, live_page, markdown, write_report
from tuning.report.verdict import verdict

__all__ = [
    "ReportFigure",
    "index_page",
    "live_page",
    "markdown",
    "report_content",
    "report_figures",
    "verdict",
    "write_report",
]
