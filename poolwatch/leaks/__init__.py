"""Leaks as assertions: what was taken and not given back, told so that it can be fixed.

``record``    one leak, the error and the warning
``noticing``  from an open or collected hold to such a record
``telling``   the text
``block``     ``with poolwatch.no_leaks(engine):``
"""
