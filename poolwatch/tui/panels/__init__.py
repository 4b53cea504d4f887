"""The parts of the dashboard, one widget each."""
