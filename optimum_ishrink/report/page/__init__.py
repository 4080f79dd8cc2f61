"""Several output folders and their bases in one page: cost and quality of each, and the Pareto-optimal ones."""
