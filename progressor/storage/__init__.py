"""Processes, tasks and events in PostgreSQL."""
