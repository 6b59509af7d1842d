"""`tasks.response`, as the original writes and reads it.

The vectors are facts: what `term_to_binary` of Erlang/OTP gives, each with atoms as OTP 26 and later write them
(tag 119) and as earlier releases do (tag 100).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import erlang
import pytest
from erlang import OtpErlangAtom, OtpErlangBinary, OtpErlangList, OtpErlangPid, OtpErlangReference
from hypothesis import given
from hypothesis import strategies as st

from progressor.engine.ports import Refused
from progressor.errors import (
    ProcessInError,
    ProcessNotFound,
    ProcessorError,
    ProcessRunning,
    TransientError,
)
from progressor.model import Answered, TaskStatus
from progressor.storage import response

TASK_ID = 12
ENDED = (TaskStatus.FINISHED, TaskStatus.ERROR, TaskStatus.CANCELLED)
OPEN = tuple(s for s in TaskStatus if s not in ENDED)

OK_OK = ("83680277026f6b77026f6b", "8368026400026f6b6400026f6b")
OK_BIN = (  # {ok, {bin, <<1,2,3>>}}
    "83680277026f6b6802770362696e6d00000003010203",
    "8368026400026f6b680264000362696e6d00000003010203",
)
OK_RAW = ("83680277026f6b6d0000000472657370", "8368026400026f6b6d0000000472657370")  # {ok, <<"resp">>}
ERROR_BIN = (  # {error, <<"do_not_retry">>}
    "83680277056572726f726d0000000c646f5f6e6f745f7265747279",
    "8368026400056572726f726d0000000c646f5f6e6f745f7265747279",
)
# {error, {exception, error, {woody_error, {external, result_unexpected, <<"why">>}}}}
ERROR_EXC = (
    """
    83680277056572726f7268037709657863657074696f6e77056572726f726802770b776f6f64795f6572726f726803
    770865787465726e616c7711726573756c745f756e65787065637465646d00000003776879
    """,
    """
    8368026400056572726f726803640009657863657074696f6e6400056572726f72680264000b776f6f64795f657272
    6f72680364000865787465726e616c640011726573756c745f756e65787065637465646d00000003776879
    """,
)
both_atom_tags = pytest.mark.parametrize("dialect", [0, 1], ids=["tag 119", "tag 100"])


def decoded(hex_: str, status: str = TaskStatus.FINISHED) -> Answered | Refused | None:
    return response.decode(status, bytes.fromhex(hex_), TASK_ID)


def refusal(answer: object) -> Exception:
    assert isinstance(answer, Refused)
    return answer.error


# What we write


def test_what_we_write_is_what_erlang_writes() -> None:
    assert response.encode(Answered(None)).hex() == OK_OK[0]
    assert response.encode(Answered(b"resp")).hex() == OK_RAW[0]
    assert response.encode(Refused(ProcessorError("do_not_retry"))).hex() == ERROR_BIN[0]
    assert response.error_term("do_not_retry").hex() == ERROR_BIN[0]
    assert response.OK.hex() == OK_OK[0]


def test_a_whole_answer_is_read_as_erlang_reads_it() -> None:
    tag, value = erlang.binary_to_term(response.encode(Answered(b"\0\xff")))
    assert (tag.value, value.value) == ("ok", b"\0\xff")


@given(st.none() | st.binary())
def test_an_answer_is_read_as_it_was_written(value: bytes | None) -> None:
    written = response.encode(Answered(value, 1))
    assert response.decode("finished", written, TASK_ID) == Answered(value, TASK_ID)


@pytest.mark.parametrize("make", [ProcessorError, TransientError])
@given(reason=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_refusal_is_read_as_it_was_written(make: Callable[[str], ProcessorError], reason: str) -> None:
    error = refusal(response.decode("error", response.encode(Refused(make(reason))), TASK_ID))
    assert type(error) is ProcessorError
    assert (error.reason, str(error)) == (reason, reason)


def test_a_reason_that_is_not_unicode_does_not_stop_its_answer() -> None:
    error = refusal(response.decode("error", response.encode(Refused(ProcessorError("a\ud800b"))), TASK_ID))
    assert str(error) == "a?b"


# What others wrote


@both_atom_tags
def test_no_response(dialect: int) -> None:
    assert decoded(OK_OK[dialect]) == Answered(None, TASK_ID)


@both_atom_tags
def test_a_binary_response(dialect: int) -> None:
    assert decoded(OK_RAW[dialect]) == Answered(b"resp", TASK_ID)


@both_atom_tags
def test_any_other_response_is_given_as_its_external_term(dialect: int) -> None:
    answer = decoded(OK_BIN[dialect])
    assert isinstance(answer, Answered)
    assert answer.response is not None
    tag, value = erlang.binary_to_term(answer.response)
    assert (response.show(tag), value) == ("bin", OtpErlangBinary(b"\1\2\3"))


@both_atom_tags
def test_a_reason_that_is_a_binary_is_its_text(dialect: int) -> None:
    error = refusal(decoded(ERROR_BIN[dialect], "error"))
    assert isinstance(error, ProcessorError)
    assert error.reason == "do_not_retry"


@both_atom_tags
def test_a_reason_that_is_a_term_is_printed(dialect: int) -> None:
    error = refusal(decoded(ERROR_EXC[dialect], "error"))
    assert isinstance(error, ProcessorError)
    assert error.reason == '{exception,error,{woody_error,{external,result_unexpected,<<"why">>}}}'


@pytest.mark.parametrize("vector", [OK_RAW, OK_OK])
@both_atom_tags
def test_a_compressed_term_is_read_too(vector: tuple[str, str], dialect: int) -> None:
    plain = bytes.fromhex(vector[dialect])
    packed = b"\x83P" + (len(plain) - 1).to_bytes(4, "big") + zlib.compress(plain[1:])
    assert response.decode("finished", packed, TASK_ID) == decoded(vector[dialect])


# Tasks that did not run to an end


@pytest.mark.parametrize("status", OPEN)
@pytest.mark.parametrize("written", [None, response.OK, response.error_term("why")])
def test_a_task_that_has_not_ended_has_no_answer(status: str, written: bytes | None) -> None:
    assert response.decode(status, written, TASK_ID) is None


def test_a_zombie_of_the_original_left_no_response() -> None:
    error = refusal(response.decode("error", None, TASK_ID))
    assert isinstance(error, ProcessorError)
    assert error.reason == "zombie detected"


def test_a_finished_task_without_a_response_succeeded() -> None:
    assert response.decode("finished", None, TASK_ID) == Answered(None, TASK_ID)


def test_a_cancelled_timer_has_no_response() -> None:
    assert str(refusal(response.decode("cancelled", None, TASK_ID))) == "cancelled"


@pytest.mark.parametrize("error", [ProcessInError(), ProcessRunning()])
def test_a_cancelled_request_is_refused_as_by_the_status_of_its_process(error: Exception) -> None:
    for written in (response.encode(Refused(error)), response.error_term(str(error))):
        found = refusal(response.decode("cancelled", written, TASK_ID))
        assert (type(found), str(found)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("status", "reason"),
    [("error", "process is error"), ("error", "process is running"), ("cancelled", "why"), ("cancelled", "timeout")],
)
def test_any_other_reason_is_that_of_a_processor(status: str, reason: str) -> None:
    error = refusal(response.decode(status, response.error_term(reason), TASK_ID))
    assert type(error) is ProcessorError
    assert error.reason == reason


def test_only_the_two_reasons_of_a_cancelled_request_are_ours() -> None:
    error = refusal(response.decode("cancelled", response.encode(Refused(ProcessNotFound())), TASK_ID))
    assert type(error) is ProcessorError


# Terms as text


def atom(name: str | bytes) -> Any:
    return OtpErlangAtom(name)


def binary(value: bytes) -> Any:
    return OtpErlangBinary(value)


PRINTED: list[tuple[Any, str]] = [
    (atom("timeout"), "timeout"),
    (atom(b"timeout"), "timeout"),
    (atom("some_reason@host1"), "some_reason@host1"),
    (atom("Upper"), "'Upper'"),
    (atom("_x"), "'_x'"),
    (atom("two words"), "'two words'"),
    (atom(""), "''"),
    (atom("end"), "'end'"),
    (atom("it's"), r"'it\'s'"),
    (atom("Elixir.KeyError"), "'Elixir.KeyError'"),
    (atom(b"\xe9t\xe9"), "été"),
    (atom("платёж"), "'платёж'"),
    (None, "undefined"),
    (True, "true"),
    (False, "false"),
    (0, "0"),
    (-1, "-1"),
    (2**100, "1267650600228229401496703205376"),
    (1.5, "1.5"),
    ((), "{}"),
    ((1,), "{1}"),
    ([], "[]"),
    ([1, [atom("a")], ()], "[1,[a],{}]"),
    ([binary(b"a"), b"bc"], '[<<"a">>,"bc"]'),
    (OtpErlangList([1, atom("tail")], improper=True), "[1|tail]"),
    (OtpErlangList([1, 2, atom("tail")], improper=True), "[1,2|tail]"),
    (b"text", '"text"'),
    (b'a"b\\c\n', r'"a\"b\\c\n"'),
    (b"\xe9", '"é"'),
    (b"\1\2\3", "[1,2,3]"),
    ({}, "#{}"),
    ({atom("k"): 1, binary(b"v"): []}, '#{k => 1,<<"v">> => []}'),
    ((binary(b""),), "{<<>>}"),
    ((binary(b"why"),), '{<<"why">>}'),
    ((binary(b'"\t'),), r'{<<"\"\t">>}'),
    ((binary("отказ".encode()),), '{<<"отказ"/utf8>>}'),
    ((binary(b"\0\1\xff"),), "{<<0,1,255>>}"),
    ((binary(b"a\0"),), "{<<97,0>>}"),
    (OtpErlangPid(atom("a@b"), b"\0\0\1\2", b"\0\0\0\3", b"\0\0\0\1"), "<0.258.3>"),
    (OtpErlangReference(atom("a@b"), b"\0\0\0\1" * 3, b"\0\0\0\1"), "#Reference<>"),
]


@pytest.mark.parametrize(("term", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_a_reason_is_printed_as_erlang_prints_it(term: Any, text: str) -> None:
    assert response.show(term) == text
    written = erlang.term_to_binary((OtpErlangAtom("error"), term))
    assert str(refusal(response.decode("error", written, TASK_ID))) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"why", "why"), ("отказ".encode(), "отказ"), (b'"a"\n', '"a"\n'), (b"a\xffb", "a\ufffdb")],
)
def test_a_binary_by_itself_is_shown_as_it_is(value: bytes, text: str) -> None:
    assert response.show(binary(value)) == text


TERMS = st.recursive(
    st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
    | st.binary()
    | st.builds(OtpErlangBinary, st.binary())
    | st.builds(OtpErlangAtom, st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5).map(str.encode).map(OtpErlangBinary), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(TERMS)
def test_any_term_can_be_a_reason(term: Any) -> None:
    written = erlang.term_to_binary((OtpErlangAtom("error"), term))
    assert isinstance(refusal(response.decode("error", written, TASK_ID)), ProcessorError)


@given(TERMS)
def test_any_term_can_be_a_response(term: Any) -> None:
    answer = response.decode("finished", erlang.term_to_binary((OtpErlangAtom("ok"), term)), TASK_ID)
    assert isinstance(answer, Answered)
    assert answer.response is None or isinstance(answer.response, bytes)
