"""Stacks and holders: capture, comparison, and the owner of each frame's code."""
