"""The database: tables, engine, migrations and queries by subject. The only SQL in the project."""
