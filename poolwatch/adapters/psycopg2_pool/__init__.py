"""psycopg2's pools."""
