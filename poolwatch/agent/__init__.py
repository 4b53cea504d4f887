"""The part of poolwatch in the application: instrument(), snapshots, the socket."""
