"""Requests that cross from a front to the model process, and their answers."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle

import pytest

from penstock.app.processes.control import Control
from penstock.app.processes.messages import (
    ANSWER,
    ASK,
    BODY,
    CANCEL,
    FAIL,
    GO,
    QUERY,
    REPLY,
    REQUEST,
    RESEND,
    TUNNEL,
)
from penstock.backends.memory import budget

from ...server.wire import until
from .stub import front, request

PREDICT = "/predict/digits"
INFER = "/v2/models/digits/infer"


async def test_a_small_request_crosses_whole_and_its_answer_comes_back() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        for _ in range(2):
            client.send(request(PREDICT, b"image"))
            answer = await client.answer()
            assert answer == b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 9\r\n\r\ngot image"
        (kind, number, head, body, (host, port), first_byte, keep_alive) = model.taken[0]
        assert kind == REQUEST and number == 1 and body == b"image" and first_byte == 0.0
        assert head == request(PREDICT, b"12345")[:-5] and keep_alive
        assert (host, port) == client.writer.get_extra_info("sockname")


async def test_large_bodies_and_answers_cross_in_shared_memory() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        body = bytes(range(256)) * 800
        client.send(request(INFER, body, b"Inference-Header-Content-Length: 7"))
        assert (await client.answer()).endswith(b"\r\n\r\ngot " + body)
        (offset, size) = next(m for m in model.taken if m[0] == REQUEST)[3]
        assert (offset + 7) % 64 == 0 and size == len(body)
        await until(lambda: not model.arena.in_use)
        used = budget.used
        await until(lambda: budget.used <= used)


async def test_a_body_in_pieces_tells_when_it_began() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        whole = request(PREDICT, b"image")
        client.send(whole[:-2])
        await until(lambda: parent.states() == ["BODY"])
        client.send(whole[-2:])
        await client.answer()
        assert 0 < model.taken[0][5] <= asyncio.get_running_loop().time()


async def test_a_large_body_is_asked_for() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        body = bytes(300_000)
        client.send(request(INFER, body))
        await until(lambda: ASK in model.kinds())
        assert model.kinds() == [ASK]
        model.packets.send((GO, 1))
        assert (await client.answer()).endswith(body)
        assert model.kinds() == [ASK, BODY]


async def test_a_large_body_that_is_refused_ends_the_connection() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        client.send(request(INFER, bytes(1 << 20))[:1000])
        await until(lambda: ASK in model.kinds())
        model.answer(1, b"no")
        assert (await client.all()).endswith(b"connection: close\r\n\r\nno")


async def test_a_client_that_leaves_cancels_its_request() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        client.send(request(PREDICT, b"image"))
        await until(lambda: REQUEST in model.kinds())
        client.writer.transport.abort()
        await until(lambda: CANCEL in model.kinds())
        model.answer(1, bytes(100_000))  # was on its way
        await until(lambda: not model.arena.in_use)


async def test_a_large_answer_is_copied_as_its_client_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even one that is larger than what this front may hold."""
    content = bytes(range(256)) * (1 << 16)
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        client.send(request(PREDICT, b"image") + request(PREDICT, b"image"))
        for number in (1, 2):
            await until(lambda: model.kinds() == [REQUEST] * number)
            model.answer(number, content)
            monkeypatch.setattr(budget, "limit", budget.used + (1 << 20))
            assert (await client.answer()).endswith(content)
            await until(lambda: not model.arena.in_use)
            monkeypatch.undo()
        assert budget.used == 0


async def test_a_client_that_leaves_in_a_large_answer_frees_it() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        client.send(request(PREDICT, b"image"))
        await until(lambda: REQUEST in model.kinds())
        model.answer(1, bytes(1 << 24))
        await until(lambda: parent.states() == ["ANSWERING"])
        assert model.arena.in_use
        client.writer.transport.abort()
        await until(lambda: not model.arena.in_use)


async def test_pipelined_answers_stay_in_order() -> None:
    async with front() as parent:
        await parent.link()
        client = await parent.connect()
        client.send(b"".join(request(PREDICT, b"%d" % number) for number in range(20)))
        for number in range(20):
            assert (await client.answer()).endswith(b"got %d" % number)


async def test_a_half_closed_client_gets_its_answer() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        client.send(request(PREDICT, b"image"))
        client.writer.write_eof()
        await until(lambda: REQUEST in model.kinds())
        model.answer(1, b"late")
        received = await client.all()
        assert received.endswith(b"connection: close\r\n\r\nlate")


async def test_a_late_body_is_answered_by_the_model_process() -> None:
    async with front() as parent:
        model = await parent.link()
        client = await parent.connect()
        client.send(request(PREDICT, b"image")[:-2])
        await until(lambda: parent.states() == ["BODY"])
        parent.pass_time(31)
        await until(lambda: FAIL in model.kinds())
        error = pickle.loads(model.taken[0][5])
        assert error.code == "invalid_request" and "body_timeout" in str(error)
        model.packets.send((ANSWER, 1, 400, b"HTTP/1.1 400 Bad Request\r\n", b"", True, None))
        assert await client.all() == b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"


async def test_requests_are_refused_without_a_model_process() -> None:
    async with front() as parent:
        client = await parent.connect()
        client.send(request(PREDICT, b"image", b"X-Request-Id: me"))
        answer = await client.answer()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1" in head
        assert b"x-request-id: me" in head and b"connection" not in head
        assert json.loads(body)["code"] == "not_ready"
        client.send(request(INFER, b"{}"))
        answer = await client.answer()
        assert answer.startswith(b"HTTP/1.1 503 ") and b'{"error":"the server has' in answer
        client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.all()).startswith(b"HTTP/1.1 503 ")
        client = await parent.connect()
        client.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.all()).endswith(b'{"live":true}')


async def test_requests_are_refused_while_the_model_process_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.app.processes.packets.MAX_WAITING", 1)
    async with front() as parent:
        model = await parent.link()
        asyncio.get_running_loop().remove_reader(model.packets._number)  # it hangs
        links, clients = parent.front._links, [await parent.connect() for _ in range(100)]
        for client in clients:
            client.send(request(PREDICT, b"x" * 30_000))
        await until(lambda: links.current is not None and links.current.is_stuck)
        client = await parent.connect()
        client.send(request(PREDICT, b"image"))
        refusal = await client.answer()
        assert refusal.startswith(b"HTTP/1.1 503 ") and b"takes no requests now" in refusal
        client = await parent.connect()
        client.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.all()).startswith(b"HTTP/1.1 503 ")
        model.packets.start()
        statuses = {(await each.answer())[9:12] for each in clients}
        assert b"200" in statuses <= {b"200", b"503"}  # 503: those that came while it was stuck
        clients[0].send(request(PREDICT, b"image"))
        assert (await clients[0].answer()).endswith(b"got image")


async def test_the_death_of_the_model_process_is_answered_and_the_next_one_used() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        clients = [await parent.connect() for _ in range(3)]
        for client in clients:
            client.send(request(PREDICT, b"image"))
        await until(lambda: len(model.bodies) == 3)
        model.packets.close()
        for client in clients:
            assert (await client.answer()).startswith(b"HTTP/1.1 503 ")
        await parent.link()
        for client in clients:
            client.send(request(PREDICT, b"image"))
            assert (await client.answer()).endswith(b"got image")


async def test_a_request_that_can_not_cross_takes_a_tunnel() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        sent = request(PREDICT, b"image")
        client.send(sent + b"GET /next HTTP")
        await until(lambda: REQUEST in model.kinds())
        model.packets.send((RESEND, 1))
        end = await model.tunnel()
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(end, 1000) == sent + b"GET /next HTTP"
        assert TUNNEL in model.kinds()


async def test_a_half_closed_client_in_a_tunnel_stays_half_closed() -> None:
    async with front() as parent:
        model = await parent.link(answers=None)
        client = await parent.connect()
        sent = request(PREDICT, b"image")
        client.send(sent)
        client.writer.write_eof()
        await until(lambda: REQUEST in model.kinds())
        assert (await client.head()).startswith(b"HTTP/1.1 100 ")  # is it still there?
        model.packets.send((RESEND, 1))
        end = await model.tunnel()
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(end, 1000) == sent
        assert await asyncio.wait_for(loop.sock_recv(end, 1000), 60) == b""


async def test_a_drain_says_so_whatever_has_ended_by_then() -> None:
    async with front() as parent:
        model = await parent.link()
        late, waiting = await parent.connect(), await parent.connect()
        late.send(request(PREDICT, b"image")[:-2])
        model.answers = None
        waiting.send(request(PREDICT, b"image"))
        await until(lambda: model.bodies and "BODY" in parent.states())
        parent.control.send((Control.DRAIN,))
        await until(lambda: parent.front.connections.draining)
        parent.pass_time(2)
        model.packets.close()
        for client in (late, waiting):
            received = await client.all()
            assert received.startswith(b"HTTP/1.1 503 ") and b"shutting down" in received
            assert b"\r\nconnection: close\r\n" in received
            client.writer.transport.abort()


async def test_the_access_log_has_a_line_for_each_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    async with front(access_log=True) as parent:
        client = await parent.connect()
        client.send(request(PREDICT, b"image", b"X-Request-Id: first"))
        await client.answer()
        model = await parent.link(answers=None)
        client.send(request(PREDICT, b"image"))
        await until(lambda: model.bodies)
        model.answer(1, b"done", log=("second", "digits", 0.002, 0.003))
        await client.answer()
        model.packets.close()
        await until(lambda: "IDLE" in parent.states())
        client.send(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\nX-Request-Id: third\r\n\r\n")
        assert (await client.all()).endswith(b"\r\n\r\n")
    lines = [vars(record) for record in caplog.records if record.name == "penstock.access"]
    assert [line["request_id"] for line in lines] == ["first", "second", "third"]
    assert [line["access"]["status"] for line in lines] == [503, 200, 503]
    assert lines[1]["pipeline"] == "digits"
    assert (lines[1]["access"]["queue_ms"], lines[1]["access"]["run_ms"]) == (2.0, 3.0)


async def test_a_question_that_can_not_be_answered_gets_an_empty_report(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(question: bytes) -> bytes:
        raise ValueError(question)

    async with front() as parent:
        parent.front.on_query = fail
        model = await parent.link()
        for number in range(9):
            model.packets.send((QUERY, number, b"?"))
        await until(lambda: model.kinds() == [REPLY] * 9)
        assert {message[2] for message in model.taken} == {b""}
    assert "a question of the model process could not be answered" in caplog.messages
