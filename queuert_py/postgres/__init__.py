"""The only user of psycopg: connections, statements, hints, migrations."""
