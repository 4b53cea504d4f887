"""The pytest plugin and ``no_leaks``: the test that leaks is the test that fails.

``pytest_plugin``    options, markers and fixtures; loads the rest only when needed
``session``          pytest's hooks for one run
``instrumentation``  keeps every pool instrumented during the run
``owners``           the test or fixture that each checkout belongs to
``scopes``           class, module and session fixtures, and the holds they may close
``reachable``        the objects that such a fixture can reach at its teardown
``teardown_names``   the names that the teardown code of a fixture refers to
``judge``            the leaks of a test or fixture, when it has ended
``runner``           what is read from pytest's own functions and frames
``results``          the leaks of one run, and their way to reports and controller
``late_reports``     reports of leaks that are found after their test was reported
``baseline``         the known leaks: ``--pool-leaks-baseline``
``lookout``          a thread that looks at the run once a second
``standstill``       finds out that the run stands still in the database, and tells
``standstill_report``  the text: what waits, who holds, and who blocks
``markers``          the help texts of the markers
``limits``           the limits that the markers of a test set
``summary``          the section at the end, annotations for GitHub, the JSON file
``fixtures``         the fixtures that return context managers
``no_leaks``         ``with poolwatch.no_leaks():``
``nothing_out``      ``assert_no_pool_leaks.now()``
``region``           the checkouts during one block of ``no_leaks``
``leak``             the record of a leak, its warning and its error
``evidence``         makes that record from a hold
``report``           the text about a leak
"""
