"""Text for people: formatting, masking, names."""
