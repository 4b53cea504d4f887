"""The viewer's side: reads agents over their sockets and joins them with the server."""
