"""The sections of the report of a run, one module each: results in, HTML out."""
