"""Suites of Django projects: a thread that lives keeps its connection between tests."""

from __future__ import annotations

SUITE = """
    import gc, threading
    import pytest
    from django.conf import settings
    from poolwatch import no_leaks

    settings.configure(DATABASES={"default": {
        "ENGINE": "django.db.backends.sqlite3", "NAME": "test.db", "TEST": {}}})

    import django
    django.setup()

    from django.db import connection
    from django.test import TestCase

    def query():
        with connection.cursor() as cursor:
            cursor.execute("select 1")  # here

    def test_plain():
        query()

    class TestOfDjango(TestCase):
        def test_in_a_transaction(self):
            query()

        def test_another(self):
            query()

    def test_a_block():
        with no_leaks():
            query()

    def test_a_thread_leaks():
        thread = threading.Thread(target=query)
        thread.start()
        thread.join()

    def test_a_thread_that_closes():
        def work():
            query()
            connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
"""


def test_only_a_thread_that_ends_leaks(suites):
    """Django closes the connection of no thread outside of requests."""
    suites.write("test_suite", SUITE, plain=True)
    suites.run("-W", "ignore").accuses_the_right_ones()
