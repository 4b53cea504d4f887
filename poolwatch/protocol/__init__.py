"""What an agent and a viewer share: the JSON document and the sockets."""
