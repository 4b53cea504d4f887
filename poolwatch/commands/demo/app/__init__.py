"""A small shop: orders, stock, shipping, reports, and a search index over documents.

It is a real application, run as a process of its own (``python -m
poolwatch.commands.demo.app``), and it has the faults people really write. Each line
that takes a connection the wrong way ends with a comment, ``fault:`` and its name.
"""
