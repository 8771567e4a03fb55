"""A workflow chains the steps in one run directory: read, embed, select, train, report."""
