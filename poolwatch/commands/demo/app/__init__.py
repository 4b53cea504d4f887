"""A small shop: orders, stock, shipping, reports, and a search index over documents.

It is a real application that runs in a separate process (``python -m
poolwatch.commands.demo.app``), with faults from real life. A faulty line that checks
out a connection ends with a comment: ``fault:`` and a name.
"""
