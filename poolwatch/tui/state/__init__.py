"""What the dashboard shows: rows, selection, filters."""
