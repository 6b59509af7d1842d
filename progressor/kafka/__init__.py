"""Kafka: what is published, where, and how it gets there in order."""
