from progressor import Event, Intent, SetTimer, StepRequest, TaskType, now
from tests import stage
from tests.conftest import Database
from tests.eventually import eventually


def test_an_init_a_call_and_a_timer_leave_their_events(database: Database) -> None:
    def script(request: StepRequest, context: bytes) -> Intent:
        action = SetTimer(now()) if request.task_type is TaskType.CALL else None
        return Intent(events=[Event(request.task_type.encode())], response=request.args, action=action)

    with stage.node(database, {"a/b": script}) as node:
        assert node.client.init(ns="a/b", id="p", args=b"x") == b"x"
        assert node.client.call(ns="a/b", id="p", args=b"y") == b"y"
        eventually(lambda: node.client.get(ns="a/b", id="p").last_event_id == 3)
        history = node.client.get(ns="a/b", id="p").history
    assert [event.payload for event in history] == [b"init", b"call", b"timeout"]
