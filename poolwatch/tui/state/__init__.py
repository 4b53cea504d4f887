"""The state of the dashboard: board, rows, selection and filter."""
