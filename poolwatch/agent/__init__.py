"""The part of poolwatch in the application: instrument(), snapshots, HTTP server."""
