"""The pytest plugin: the test that leaks is the test that fails.

``pytest_plugin``  options, markers and fixtures; loads the rest only if it is wanted
``session``        pytest's hooks for one run
``watching``       every engine, also when a test switches that off
``owners``         whose code takes a connection: a test's, or a fixture's
``standing``       fixtures of wider scopes, and what tests leave with them
``judging``        what an owner has leaked, when it is over
``late``           what is found when its test is over
``markers``        the markers in words
``limits``         what a test's markers allow and limit
``summary``        the section at the end, annotations for GitHub, the JSON file
``asserting``      the fixtures that return context managers
"""
