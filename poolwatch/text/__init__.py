"""Words for people: formatting, masking, names."""
