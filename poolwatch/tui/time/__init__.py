"""The past of the dashboard: the last minutes, the history, and saved moments."""
