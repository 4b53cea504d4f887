"""The search for reference paths: from roots to held connections, and in words."""
