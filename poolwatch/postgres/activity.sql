-- Reads the server's own facts, the sessions asked for, and all that block them, to the
-- root; of idle connections only those that have locks, are in a transaction or listen.
-- If 'everyone' is true, also the other clients of the databases in question.
-- PostgreSQL 14 and later. One row with one column of JSON text: the result does not
-- depend on a driver's types, row factories or placeholders (so the statement has no
-- percent sign, colon or question mark). activity.py fills in the pids, 'everyone', and
-- 'system' if the role may read it, and removes comments like this one.
WITH RECURSIVE session AS MATERIALIZED (
    SELECT pid, datid, datname, usename, backend_type, backend_start, backend_xmin,
           xact_start, state_change, client_addr, client_port, application_name,
           wait_event_type, wait_event, state, query,
           -- hidden from an unprivileged role: sessions with a database are clients
           backend_type = 'client backend' OR backend_type IS NULL AND datid IS NOT NULL
               AS is_client
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
    SELECT *
    FROM session
    WHERE pid = ANY (CAST(ARRAY[/* pids */] AS int[]))
       OR pid IN (SELECT pid FROM locked)
       OR pid = ANY (CAST(ARRAY[/* idle */] AS int[]))
          AND (pg_catalog.starts_with(state, 'idle in transaction')
               OR CASE WHEN datid IN (SELECT oid FROM readable)
                       THEN pg_catalog.lower(pg_catalog."left"(query, 6)) = 'listen' END)
), candidate AS MATERIALIZED (
    SELECT *, pg_catalog.row_number() OVER (ORDER BY
        CASE WHEN wait_event_type = 'Lock' THEN 0
             WHEN xact_start IS NOT NULL THEN 1
             WHEN state = 'active' THEN 2
             ELSE 3 END, xact_start, pid) AS place
    FROM session
    WHERE false /* everyone */
      AND is_client
      AND pid <> pg_catalog.pg_backend_pid()
      AND pid NOT IN (SELECT pid FROM asked)
      AND (datname = pg_catalog.current_database()
           OR datid IN (SELECT datid FROM session
                        WHERE pid = ANY (CAST(ARRAY[/* pids */] AS int[]))
                           OR pid = ANY (CAST(ARRAY[/* idle */] AS int[]))))
), listed AS MATERIALIZED (
    SELECT pid, wait_event_type FROM asked
    UNION ALL
    SELECT pid, wait_event_type FROM candidate
    WHERE place <= /* most */ - (SELECT pg_catalog.count(*) FROM asked)
), level (met, pids, waiters, blockers) AS (
    -- One row for each step up the chains. pg_blocking_pids stops the lock manager for a
    -- moment, so it is called only for sessions that wait, and once for each. In a queue
    -- it names all that are ahead: as text, such an array is one value.
    SELECT ARRAY(SELECT pid FROM listed),
           ARRAY(SELECT pid FROM listed WHERE wait_event_type = 'Lock'),
           CAST(ARRAY[] AS int[]), CAST(ARRAY[] AS text[])
    UNION ALL
    SELECT pg_catalog.array_cat(met, next.pids), next.pids, edge.waiters, edge.blockers
    FROM level,
    LATERAL (
        SELECT pg_catalog.array_agg(session.pid) AS waiters,
               pg_catalog.array_agg(CAST(pg_catalog.pg_blocking_pids(session.pid) AS text))
                   AS blockers
        FROM pg_catalog.unnest(level.pids) AS of_level (pid)
        JOIN session ON session.pid = of_level.pid AND wait_event_type = 'Lock'
    ) AS edge,
    LATERAL (
        SELECT ARRAY(
            SELECT pg_catalog.unnest(CAST(of_waiter AS int[]))
            FROM pg_catalog.unnest(edge.blockers) AS of_waiter
            EXCEPT SELECT pg_catalog.unnest(level.met)
            LIMIT GREATEST(0, 256 + (SELECT pg_catalog.count(*) FROM listed)
                                  - pg_catalog.cardinality(level.met))
        ) AS pids
        OFFSET 0  -- evaluated once
    ) AS next
    WHERE pg_catalog.cardinality(level.pids) > 0
), blocked AS (
    SELECT waiter, CAST(of_waiter AS int[]) AS blocked_by
    FROM level, ROWS FROM (pg_catalog.unnest(waiters), pg_catalog.unnest(blockers))
         AS edge (waiter, of_waiter)
), requested AS (
    -- the first condition is evaluated once: if nobody waits, pg_locks is not read
    SELECT pid AS requester, pg_catalog.min(waitstart) AS since
    FROM pg_catalog.pg_locks
    WHERE EXISTS (SELECT FROM blocked) AND NOT granted
    GROUP BY pid
), shown AS (
    SELECT session.*, blocked_by, since
    FROM session
    LEFT JOIN blocked ON waiter = pid
    LEFT JOIN requested ON requester = pid
    WHERE pid IN (SELECT pg_catalog.unnest(met) FROM level)
), moment AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now
)
SELECT CAST(pg_catalog.json_build_object(
    'system', NULL /* system */,
    'host', pg_catalog.host(pg_catalog.inet_server_addr()),
    'port', pg_catalog.inet_server_port(),
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
                 WHERE is_client),
    'left_out', (SELECT pg_catalog.count(*) FROM candidate
                 WHERE pid NOT IN (SELECT pid FROM listed)),
    'backends', (SELECT COALESCE(pg_catalog.json_agg(pg_catalog.json_build_object(
        'pid', pid,
        'age_s', EXTRACT(EPOCH FROM now - backend_start),
        'xact_age_s', EXTRACT(EPOCH FROM now - xact_start),
        'state_age_s', EXTRACT(EPOCH FROM now - state_change),
        'client', pg_catalog.host(client_addr),
        'client_port', client_port,
        'application', application_name,
        'database', datname,
        'user', usename,
        'xmin_age', pg_catalog.age(backend_xmin),
        'wait_event_type', wait_event_type,
        'wait_event', wait_event,
        'state', state,
        'query', CASE WHEN datid IN (SELECT oid FROM readable) THEN query END,
        'blocked_by', blocked_by,
        'waited_s', EXTRACT(EPOCH FROM now - since),
        'locks', (SELECT locks FROM locked WHERE locked.pid = shown.pid)
    ) ORDER BY pid), '[]') FROM shown, moment)
) AS text)
