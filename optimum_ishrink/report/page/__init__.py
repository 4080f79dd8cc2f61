"""Several output folders and their bases in one page: what each costs, what it keeps, and which are worth having."""

from .overview import Cell, Column, Model, Overview, build_overview, overview_rows
from .pareto import Picture, pareto_optimal, pictures
from .reading import Measured, read_reports
from .render import check_page, render_page, write_page

__all__ = [
    "Cell",
    "Column",
    "Measured",
    "Model",
    "Overview",
    "Picture",
    "build_overview",
    "check_page",
    "overview_rows",
    "pareto_optimal",
    "pictures",
    "read_reports",
    "render_page",
    "write_page",
]
