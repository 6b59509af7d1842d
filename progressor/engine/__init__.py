"""The engine: decides what happens to processes, and when. Knows no database, no broker and no wire."""
