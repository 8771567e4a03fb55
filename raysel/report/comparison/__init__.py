"""A comparison of policies over seeds: its numbers, its findings in words, its tables and its page.

Everything is computed from :class:`raysel.report.results.CompareResults`. The metrics of the table are on the test
rows after the last epoch; only the curves of the figure are on the validation rows. A spread is the standard deviation
over seeds; a difference is taken seed by seed, with its standard error.
"""
