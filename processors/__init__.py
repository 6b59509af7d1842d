"""Processors that come with Progressor: samples to read, and to try the engine with."""
