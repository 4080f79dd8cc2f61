"""Several output folders and their bases in one page: what each costs, what it keeps, and which are worth having."""
