"""The viewer: reads agents over their sockets and joins holds with server sessions."""
