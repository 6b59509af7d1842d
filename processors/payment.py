"""A payment, from its authorisation to its removal: a real flow to learn from.

    init ─▶ authorised ── call "approved", or nobody objects in time ──▶ capturing ─▶ completed ── retention ─▶ (gone)
                 └─────── call "declined" ─▶ declined ── retention ─▶ (gone)

What it shows:

- The state is JSON in the aux_state; what happened are events, which carry the version of their format.
- What may fail and must be done is done in a timeout step: such a step is tried again. A call that fails is not, and
  brings the process into error, like an init.
- A step can run twice: its node dies, and another one takes the task over. So all that is asked of others carries a
  key that is the same the second time.
- Nonsense in a call is answered, not raised: an error would stop the payment and cancel its timer.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from processors.bank import CARDS, Bank, Refusal
from progressor import Event, Intent, ProcessorError, SetTimer, StepRequest, TaskType, now, seconds

logger = logging.getLogger(__name__)


class Payment:
    """Init: `{"amount": 100, "currency": "EUR", "card": "..."}`; the card is a token, since args are kept.

    Call: the webhook of the bank, `{"type": "approved"}` or `{"type": "declined"}`. Notify: the customer wants a
    receipt, `{"email": "..."}`. Repair: `{"card": "..."}` goes on with another card, `{}` with the old one; after a
    failed init all that the init was given. Answers are JSON: `{"status": "authorised"}`.

    Options, in seconds: `approval_timeout` (60), how long to wait for the webhook; `retention` (3600), how long a
    finished payment is kept. `cards`: see bank.py.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._approval_timeout = seconds(options.get("approval_timeout", 60))
        self._retention = seconds(options.get("retention", 3600))
        self._bank = Bank(options.get("cards", CARDS))

    def process(self, request: StepRequest, options: Mapping[str, Any], context: bytes) -> Intent:
        payment = json.loads(request.process.aux_state or b"{}")
        args = _object(request.args)
        match request.task_type:
            case TaskType.INIT:
                authorised = self._authorise(request, args)
                return _became("authorised", authorised, SetTimer(now() + self._approval_timeout))
            case TaskType.CALL:
                return self._webhook(payment, args)
            case TaskType.NOTIFY:
                return self._send_receipt(request, payment, args)
            case TaskType.REPAIR:
                return self._repair(request, payment, args)
            case _:
                return self._capture(request, payment)

    def _authorise(self, request: StepRequest, wanted: Mapping[str, Any]) -> dict[str, Any]:
        missing = [name for name in ("amount", "currency", "card") if name not in wanted]
        if missing:
            raise ProcessorError(f"missing: {', '.join(missing)}")
        # A task that is run again has its old id, also on another node; a repair with another card is another task.
        key = f"{request.namespace} {request.process.process_id} {request.task_id}"
        try:
            authorisation = self._bank.authorise(key, str(wanted["card"]))
        except Refusal as error:
            raise ProcessorError(str(error)) from error
        return {"amount": wanted["amount"], "currency": wanted["currency"], "authorisation": authorisation}

    def _webhook(self, payment: dict[str, Any], args: Mapping[str, Any]) -> Intent:
        match payment["status"], args.get("type"):
            case "authorised", "approved":
                return _became("capturing", payment, SetTimer(now()))
            case "authorised", "declined":
                return _became("declined", payment, SetTimer(now() + self._retention, remove=True))
            case status, _:  # too late, twice, or unknown
                return Intent(response=_json({"status": status, "ignored": True}))

    def _capture(self, request: StepRequest, payment: dict[str, Any]) -> Intent:
        # An authorisation is captured once, whichever task it is: the one of a repair has another id.
        key = f"{request.namespace} {request.process.process_id} {payment['authorisation']}"
        receipt = self._bank.capture(key, payment["authorisation"])["receipt"]
        payment["receipt"] = receipt
        return _became("completed", payment, SetTimer(now() + self._retention, remove=True), receipt=receipt)

    def _send_receipt(self, request: StepRequest, payment: Mapping[str, Any], args: Mapping[str, Any]) -> Intent:
        """Nobody waits for the outcome, and the timer stays as it is."""
        logger.info("mail %d: your payment is %s", request.task_id, payment["status"])  # the number is the key again
        return Intent(events=[_event("receipt_sent", to=args.get("email"), status=payment["status"])])

    def _repair(self, request: StepRequest, payment: dict[str, Any], args: Mapping[str, Any]) -> Intent:
        if args or not payment:
            payment = self._authorise(request, {**payment, **args})
        return _became("capturing", payment, SetTimer(now()), repaired=True)


def _became(status: str, payment: dict[str, Any], action: SetTimer, **details: Any) -> Intent:
    """The payment goes on to `status`. The metadata make it possible to list payments by it."""
    return Intent(
        events=[_event(status, **details)],
        aux_state=_json({**payment, "status": status}),
        metadata={"status": status},
        response=_json({"status": status}),
        action=action,
    )


def _event(kind: str, **details: Any) -> Event:
    return Event(payload=_json({"type": kind, **details}), metadata={"format_version": 1})


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _object(args: bytes) -> dict[str, Any]:
    """The JSON object in the args; an empty one when there is none."""
    try:
        value = json.loads(args or b"{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
