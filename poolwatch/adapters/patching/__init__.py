"""Ways to replace a method of a library by one of ours, and to put it back."""
