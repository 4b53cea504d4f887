"""The process beside the application: metrics, history, alerts.

It is only a viewer. Nothing in the application depends on it; it may come, go and be
killed at any time.
"""
