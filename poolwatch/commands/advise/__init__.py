"""``poolwatch advise``: the size of a pool, from what was measured.

``recording``  in the application: who asked when, and held for how long, for a while
``replay``     the recorded requests again, with another number of connections
``queueing``   what theory says, without the order of the requests
``advising``   from both to recommendations
``report``     for people
"""
