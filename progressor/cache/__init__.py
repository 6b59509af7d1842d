"""The cache: processes in memory that follow the database by its WAL, and answer `get` (docs/cache.md)."""
