-- One look at one server: its own facts, the sessions asked for, and who blocks them.
-- PostgreSQL 14 and later. One row, one column of JSON text: drivers then have no say in
-- types, row factories or placeholders (so no percent sign, colon or question mark here).
-- Before it is sent the pids are filled in, 'system' where that is allowed, and comments
-- like this one are taken out (activity.py).
WITH session AS MATERIALIZED (
    SELECT pid, datid, backend_type, backend_start, xact_start, state_change, client_port,
           application_name, wait_event_type, wait_event, state, query
    FROM pg_catalog.pg_stat_activity
), asked AS MATERIALIZED (
    -- pg_blocking_pids stops the lock manager for a moment: only for those that wait
    SELECT *, CASE WHEN wait_event_type = 'Lock'
                   THEN pg_catalog.pg_blocking_pids(pid) END AS blocked_by
    FROM session
    WHERE pid = ANY (CAST(ARRAY[/* pids */] AS int[]))
), shown AS (
    SELECT * FROM asked
    UNION ALL
    SELECT *, CASE WHEN wait_event_type = 'Lock'
                   THEN pg_catalog.pg_blocking_pids(pid) END
    FROM session
    WHERE pid IN (SELECT pg_catalog.unnest(blocked_by) FROM asked)
      AND pid NOT IN (SELECT pid FROM asked)
), moment AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now
), readable AS MATERIALIZED (
    -- a statement is kept in the encoding of its own database: another one's is no text
    SELECT oid FROM pg_catalog.pg_database
    WHERE encoding = (SELECT encoding FROM pg_catalog.pg_database
                      WHERE datname = pg_catalog.current_database())
)
SELECT CAST(pg_catalog.json_build_object(
    'system', NULL /* system */,
    'started', EXTRACT(EPOCH FROM pg_catalog.pg_postmaster_start_time()),
    'up_s', EXTRACT(EPOCH FROM pg_catalog.clock_timestamp()
                               - pg_catalog.pg_postmaster_start_time()),
    'version', pg_catalog.current_setting('server_version'),
    'max_connections', CAST(pg_catalog.current_setting('max_connections') AS int),
    'reserved', CAST(pg_catalog.current_setting('superuser_reserved_connections') AS int)
                -- PostgreSQL 16 and later
                + COALESCE(CAST(pg_catalog.current_setting('reserved_connections', true)
                                AS int), 0),
    'sessions', (SELECT pg_catalog.count(*) FROM session
                 WHERE backend_type = 'client backend'
                    -- hidden from an unprivileged role; those with a database are clients
                    OR backend_type IS NULL AND datid IS NOT NULL),
    'backends', (SELECT COALESCE(pg_catalog.json_agg(pg_catalog.json_build_object(
        'pid', pid,
        'age_s', EXTRACT(EPOCH FROM now - backend_start),
        'xact_age_s', EXTRACT(EPOCH FROM now - xact_start),
        'state_age_s', EXTRACT(EPOCH FROM now - state_change),
        'client_port', client_port,
        'application', application_name,
        'wait_event_type', wait_event_type,
        'wait_event', wait_event,
        'state', state,
        'query', CASE WHEN datid IN (SELECT oid FROM readable) THEN query END,
        'blocked_by', blocked_by
    ) ORDER BY pid), '[]') FROM shown, moment)
) AS text)
