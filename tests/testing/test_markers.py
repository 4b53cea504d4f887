"""What a test declares and asks of itself."""

from __future__ import annotations

SOURCE = """
    import asyncio, poolwatch

    @pytest.mark.allow_pool_leaks(2, reason="the legacy client")
    def test_allowed():
        kept.extend([engine.connect(), engine.connect()])

    @pytest.mark.allow_pool_leaks(reason="the legacy client")
    def test_wrong_fewer():
        pass

    @pytest.mark.allow_pool_leaks(reason="the legacy client")
    def test_wrong_more():
        kept.extend([engine.connect(), engine.connect()])

    @pytest.mark.allow_pool_leaks(1)
    def test_wrong_no_reason(): pass

    @pytest.mark.allow_pool_leaks(0, reason="none")
    def test_wrong_number(): pass

    @pytest.mark.limit_pool(checkouts=1)
    def test_within():
        for _ in range(3):
            engine.connect().close()

    @pytest.mark.limit_pool(checkouts=1)
    def test_wrong_too_many():
        with engine.connect():
            with engine.connect():
                pass

    @pytest.mark.limit_pool(hold="20 ms")
    def test_wrong_too_long():
        with engine.connect():
            time.sleep(0.05)

    @pytest.mark.limit_pool(checkouts=3, hold="10 s")
    async def test_within_async():
        with engine.connect(), engine.connect():
            await asyncio.sleep(0)

    @pytest.mark.limit_pool(hold="soon")
    def test_wrong_time(): pass

    @pytest.mark.limit_pool(checkout=1)
    def test_wrong_misspelt():
        with engine.connect(), engine.connect():
            pass

    @pytest.mark.limit_pool
    def test_wrong_no_limit(): pass

    @pytest.mark.limit_pool(1, "1 s", checkouts=2)
    def test_wrong_twice(): pass

    @pytest.mark.limit_pool(checkouts=True)
    def test_wrong_bool(): pass

    @pytest.mark.allow_pool_leaks(number=2, reason="the legacy client")
    def test_wrong_allow_misspelt(): pass

    def test_fixture_uncalled(assert_no_pool_leaks, assert_max_pool_checkouts):
        with assert_no_pool_leaks, assert_max_pool_checkouts:
            engine.connect().close()

    def test_fixture_finds(assert_no_pool_leaks, assert_max_pool_checkouts, pool_watch):
        with pytest.raises(poolwatch.PoolLeakError) as caught:
            with assert_no_pool_leaks:
                mine = engine.connect()
        assert len(caught.value.leaks) == 1
        (hold,) = pool_watch.holds()
        assert hold.site.function == "test_fixture_finds"
        mine.close()
        assert pool_watch.holds() == ()
        assert pool_watch.peak == 1
        (process,) = pool_watch.snapshot().processes
        (pool,) = [pool for pool in process.pools if pool.id == hold.pool]
        assert pool.counters.checkins == pool.hold_s.count >= 1
        assert hold.site in [site.site for site in process.sites]
        with pytest.raises(AssertionError) as caught:
            with assert_max_pool_checkouts(1):
                with engine.connect(), engine.connect():
                    pass
        assert "held 2 connections at once; the limit is 1" in str(caught.value)
        assert str(caught.value).count("held from") == 2
        with assert_max_pool_checkouts(2), assert_no_pool_leaks(engine, grace=0.1):
            with engine.connect(), engine.connect():
                pass

    async def test_fixture_async(assert_no_pool_leaks, assert_max_pool_checkouts):
        async with assert_no_pool_leaks, assert_max_pool_checkouts:
            engine.connect().close()
        async with assert_no_pool_leaks(engine), assert_max_pool_checkouts(2):
            engine.connect().close()
        with pytest.raises(AssertionError):
            async with assert_no_pool_leaks():
                mine = engine.connect()
        mine.close()
        with pytest.raises(AssertionError):
            async with assert_max_pool_checkouts:
                with engine.connect(), engine.connect():
                    pass

    def test_nested(assert_no_pool_leaks):
        with assert_no_pool_leaks:
            with assert_no_pool_leaks:
                engine.connect().close()
"""


def test_markers_and_fixtures(suites):
    suites.write("test_it", SOURCE)
    ran = suites.run("--strict-markers")
    wrongly_written = [
        *("allow_misspelt", "bool", "misspelt", "no_limit", "no_reason", "number"),
        *("time", "twice"),
    ]
    assert ran.failed == [f"test_wrong_{each}" for each in wrongly_written], ran.text
    leaking = ["fewer", "more", "too_long", "too_many"]
    assert ran.errors == [f"test_wrong_{each}" for each in leaking]
    ran.result.stdout.fnmatch_lines_random(
        [
            "*test_wrong_fewer leaked 0 connections, allow_pool_leaks expects 1 (*",
            "*test_wrong_more leaked 2 connections",
            'allow_pool_leaks needs a reason: allow_pool_leaks(n=1, reason="...")',
            "allow_pool_leaks: n must be 1 or more, not 0",
            "*test_wrong_too_many held 2 connections at once, limit_pool(checkouts=1)",
            "  held from *test_it.py:* in test_wrong_too_many",
            '*test_wrong_too_long held a connection for *limit_pool(hold="20 ms")',
            "limit_pool: hold='soon' is not a duration*",
            "limit_pool: got an unexpected keyword argument 'checkout'; write limit_*",
            "limit_pool needs a limit: limit_pool(checkouts=1, *",
            "limit_pool: multiple values for argument 'checkouts'; write *",
            "limit_pool: checkouts must be a non-negative integer, not True",
            "allow_pool_leaks: got an unexpected keyword argument 'number'; write *",
        ]
    )


def test_only_some_engines(suites):
    suites.write(
        "conftest",
        """
        other = make("other.db")

        @pytest.fixture(scope="session")
        def pool_watch_engines():
            return [other]

        @pytest.fixture(scope="module")
        def not_watched():
            kept.append(engine.connect())

        @pytest.fixture(scope="module")
        def watched():
            kept.append(other.connect())  # here
        """,
    )
    suites.write(
        "test_it",
        """
        from conftest import other
        def test_not_watched(not_watched): kept.append(engine.connect())
        def test_leaks(): kept.append(other.connect())  # here
        def test_leaks_by_fixture(watched): pass
        """,
    )
    suites.run().accuses_the_right_ones()


def test_a_leak_that_the_collector_meets_three_tests_later(suites):
    """What nobody could see when the test was over, as a detached task's."""
    suites.write(
        "test_it",
        """
        def test_leaks():
            def work():
                gate.wait(30)
                box.append([engine.connect()])  # here
            threading.Thread(target=work).start()

        gate, box = threading.Event(), []
        def test_one(): pass
        def test_opens():
            gate.set()
            while not box:
                time.sleep(0.01)
        def test_three():
            box[0].append(box[0])
            box.clear()
            gc.collect()
        def test_four(): pass
        """,
    )
    ran = suites.run("-v")
    ran.accuses_the_right_ones()
    assert ran.leaks[0]["kind"] == "collected"
    before, _ = ran.text.split("test_four PASSED")
    assert "test_it.py::test_leaks ERROR" in before
