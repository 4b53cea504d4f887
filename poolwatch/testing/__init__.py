"""The pytest plugin: the test that leaks is the test that fails.

``pytest_plugin``  options, markers and fixtures; loads the rest only if it is wanted
``session``        pytest's hooks for one run
``owners``         whose code takes a connection: a test's, or a fixture's
``judging``        what an owner has leaked, when it is over
``markers``        the markers in words
``limits``         what a test's markers allow and limit
``summary``        the section at the end, annotations for GitHub, the JSON file
``asserting``      the fixtures that return context managers
"""
