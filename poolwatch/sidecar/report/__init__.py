"""The report: one self-contained HTML page of a stretch of history."""
