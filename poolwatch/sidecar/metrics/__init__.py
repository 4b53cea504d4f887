"""What Prometheus scrapes. Only exposition.py knows prometheus-client."""
