"""Lines and tables of styled text."""
