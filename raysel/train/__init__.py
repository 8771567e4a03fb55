"""Training on what was selected: inside Ray Train workers, or in one plain process."""
