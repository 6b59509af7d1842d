"""Answers what it is told, and remembers it."""

from collections.abc import Mapping
from typing import Any

from progressor import Event, Intent, StepRequest


class Echo:
    """Every step adds its args to the history, if there are any, and gives them back."""

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        events = [Event(payload=request.args, metadata={"format_version": 1})] if request.args else []
        return Intent(events=events, response=request.args)
