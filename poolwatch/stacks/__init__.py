"""Who asks for a connection, and from which line of whose code."""
