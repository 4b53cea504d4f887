"""Shared by agent and viewer: the JSON document, the records and the sockets."""
