"""The panels of the dashboard: functions that return styled lines."""
