-- Reads the server's own facts, the sessions asked for, and the sessions that block them
-- and their blockers; of idle connections only those that have locks, are in a transaction
-- or listen.
-- PostgreSQL 14 and later. One row with one column of JSON text: the result does not
-- depend on a driver's types, row factories or placeholders (so the statement has no
-- percent sign, colon or question mark). activity.py fills in the pids, and 'system' if
-- the role may read it, and removes comments like this one.
WITH session AS MATERIALIZED (
    SELECT pid, datid, backend_type, backend_start, xact_start, state_change, client_addr,
           client_port, application_name, wait_event_type, wait_event, state, query
    FROM pg_catalog.pg_stat_activity
), readable AS MATERIALIZED (
    -- a statement is in the encoding of its database: only our own can be decoded
    SELECT oid FROM pg_catalog.pg_database
    WHERE encoding = (SELECT encoding FROM pg_catalog.pg_database
                      WHERE datname = pg_catalog.current_database())
), locked AS MATERIALIZED (
    -- the first condition is constant: without idle connections pg_locks is not read
    SELECT pid, pg_catalog.count(*) AS locks
    FROM pg_catalog.pg_locks
    WHERE pg_catalog.cardinality(CAST(ARRAY[/* idle */] AS int[])) > 0
      AND locktype = 'advisory' AND granted
      AND pid = ANY (CAST(ARRAY[/* idle */] AS int[]))
    GROUP BY pid
), asked AS MATERIALIZED (
    -- pg_blocking_pids stops the lock manager for a moment: only for waiting sessions
    SELECT *, CASE WHEN wait_event_type = 'Lock'
                   THEN pg_catalog.pg_blocking_pids(pid) END AS blocked_by
    FROM session
    WHERE pid = ANY (CAST(ARRAY[/* pids */] AS int[]))
       OR pid IN (SELECT pid FROM locked)
       OR pid = ANY (CAST(ARRAY[/* idle */] AS int[]))
          AND (pg_catalog.starts_with(state, 'idle in transaction')
               OR CASE WHEN datid IN (SELECT oid FROM readable)
                       THEN pg_catalog.lower(pg_catalog."left"(query, 6)) = 'listen' END)
), blocker AS MATERIALIZED (
    SELECT *, CASE WHEN wait_event_type = 'Lock'
                   THEN pg_catalog.pg_blocking_pids(pid) END AS blocked_by
    FROM session
    WHERE pid IN (SELECT pg_catalog.unnest(blocked_by) FROM asked)
      AND pid NOT IN (SELECT pid FROM asked)
), shown AS (
    SELECT * FROM asked
    UNION ALL
    SELECT * FROM blocker
    UNION ALL
    SELECT *, NULL
    FROM session
    WHERE pid IN (SELECT pg_catalog.unnest(blocked_by) FROM blocker)
      AND pid NOT IN (SELECT pid FROM asked)
      AND pid NOT IN (SELECT pid FROM blocker)
), moment AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now
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
                    -- hidden from an unprivileged role: sessions with a database are clients
                    OR backend_type IS NULL AND datid IS NOT NULL),
    'backends', (SELECT COALESCE(pg_catalog.json_agg(pg_catalog.json_build_object(
        'pid', pid,
        'age_s', EXTRACT(EPOCH FROM now - backend_start),
        'xact_age_s', EXTRACT(EPOCH FROM now - xact_start),
        'state_age_s', EXTRACT(EPOCH FROM now - state_change),
        'client', pg_catalog.host(client_addr),
        'client_port', client_port,
        'application', application_name,
        'wait_event_type', wait_event_type,
        'wait_event', wait_event,
        'state', state,
        'query', CASE WHEN datid IN (SELECT oid FROM readable) THEN query END,
        'blocked_by', blocked_by,
        'locks', (SELECT locks FROM locked WHERE locked.pid = shown.pid)
    ) ORDER BY pid), '[]') FROM shown, moment)
) AS text)
