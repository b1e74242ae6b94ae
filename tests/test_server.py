"""The names of http.server and socketserver mean here what their documentation says."""
import http.server
import os
import select
import socket
import struct
import threading
import time

import pytest

import fake_metadata
from conversation import converse
from service import receive_all, wait_for

REQUEST = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW = "[faults]\nslow = /latest/meta-data/mac delay 1m\n"


@pytest.fixture
def make_server(make_metadata, tmp_path):
    """Make a Server that listens: make_server(text of a configuration); closed at the end."""
    servers = []

    def make(text=""):
        log = fake_metadata.Log(str(tmp_path / "server.log"))
        tokens = fake_metadata.SessionTokens(b"key")
        server = fake_metadata.Server([("127.0.0.1", 0)], tokens, log)
        server.service = make_metadata(text)
        server.server_bind()
        server.server_activate()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.server_close()


@pytest.fixture
def serving(make_server):
    """Have a Server serve in a thread: serving(text); it must have stopped when the test ends."""
    threads = []

    def serve(text=""):
        server = make_server(text)
        threads.append(threading.Thread(target=server.serve_forever))
        threads[-1].start()
        return server

    yield serve
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "shutdown() was not called, or did not stop it"


def connect(server):
    return socket.create_connection(server.server_address, timeout=5)


def test_shutdown_by_another_thread(serving):
    """shutdown() stops serve_forever and returns when it has stopped; the port is closed."""
    server = serving()
    with connect(server) as client:
        client.sendall(REQUEST)
        assert b" 200 OK\r\n" in client.recv(65536)

        server.shutdown()

        assert receive_all(client) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_shutdown_finishes_what_is_in_flight(serving):
    """A request that has come before shutdown() is answered, with Connection: close."""
    server = serving("[faults]\nslow = /latest/meta-data/instance-id delay 300ms\n")
    with connect(server) as client:
        client.sendall(REQUEST)
        wait_for(lambda: [task for task in server.unfinished.values()
                          if task.handler.request], what="the request")

        server.shutdown()

        answer = receive_all(client)
    assert b" 200 OK\r\n" in answer and b"Connection: close\r\n" in answer


def test_shutdown_does_not_wait_for_ever(serving, monkeypatch):
    """What takes longer than STOP_SECONDS is cut off by shutdown()."""
    monkeypatch.setattr(fake_metadata, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(fake_metadata, "SWEEP_SECONDS", 0.1)
    server = serving(SLOW)
    with connect(server) as client:
        client.sendall(REQUEST.replace(b"instance-id", b"mac"))
        wait_for(lambda: [task for task in server.unfinished.values()
                          if task.handler.request], what="the request")
        began = time.monotonic()

        server.shutdown()

        assert time.monotonic() - began < 3
        assert receive_all(client) == b""


def test_shutdown_twice(serving):
    """shutdown() of a server that has stopped returns at once."""
    server = serving()
    server.shutdown()
    began = time.monotonic()

    server.shutdown()

    assert time.monotonic() - began < 1 and not server.unfinished


def test_shutdown_before_serve_forever(make_server):
    """serve_forever ends at once where shutdown() came first, as that of BaseServer does."""
    server = make_server()
    server.shutdown()

    server.serve_forever()

    assert server.stopping


def test_server_close_leaves_nothing(make_server):
    """server_close() closes every socket, those of clients too, and may be called twice."""
    before = os.listdir("/proc/self/fd")
    server = make_server()
    clients = [connect(server) for _ in range(3)]
    wait_for(lambda: server.serve_once() or len(server.unfinished) == 3, what="the clients")

    server.server_close()
    server.server_close()
    server.log.close()

    assert [receive_all(client) for client in clients] == [b""] * 3
    for client in clients:
        client.close()
    assert os.listdir("/proc/self/fd") == before


def test_get_request(make_server):
    """get_request() returns the socket of a client and its address."""
    server = make_server()
    with connect(server) as client:
        listener = listener_of(server)
        wait_for(lambda: ready(listener), what="the connection")
        request, address = server.get_request(listener)

        assert address == client.getsockname() and request.getpeername() == address
        server.shutdown_request(request)
        assert client.recv(1) == b""


def listener_of(server):
    """Return the only listening socket of a server."""
    listener, = server.listeners.values()
    return listener


def ready(file):
    """Tell whether there is something to read, or to accept."""
    return select.select([file], [], [], 0)[0]


def test_process_request_puts_it_into_the_table(make_server):
    """process_request() begins with a connection; shutdown_request() ends it, also twice."""
    server = make_server()
    with connect(server) as client:
        listener = listener_of(server)
        wait_for(lambda: ready(listener), what="the connection")
        request, address = server.get_request(listener)

        server.process_request(request, address)
        assert list(server.unfinished) == [request]
        server.shutdown_request(request)
        server.shutdown_request(request)

        assert not server.unfinished and client.recv(1) == b""


def test_verify_request(make_server):
    """verify_request() is False for a client too many, who is told so."""
    server = make_server()
    server.max_connections = 0
    with connect(server) as client:
        listener = listener_of(server)
        wait_for(lambda: ready(listener), what="the connection")
        request, address = server.get_request(listener)

        assert server.verify_request(request, address) is False
        server.shutdown_request(request)
        assert receive_all(client).startswith(b"HTTP/1.1 503 ")


def test_client_too_many_that_has_gone(make_server):
    """A client too many that has reset its connection already costs nobody anything."""
    server = make_server()
    server.max_connections = 0
    server.call_later(1, lambda: None)  # so that serve_once waits no longer
    for _ in range(3):
        client = connect(server)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()

    server.serve_once()

    with connect(server) as client:
        wait_for(lambda: server.serve_once() or ready(client), what="the answer")
        assert receive_all(client).startswith(b"HTTP/1.1 503 ")


def test_stop_takes_all_that_have_come(make_server):
    """All clients that are in the queue when the server stops are answered."""
    server = make_server()
    clients = [connect(server) for _ in range(fake_metadata.ACCEPT_BATCH * 2 + 9)]
    for client in clients:
        client.sendall(REQUEST)

    server.stop()

    assert all(b" 200 OK\r\n" in receive_all(client) for client in clients)
    for client in clients:
        client.close()


def test_handle_error_costs_one_connection(make_server, monkeypatch):
    """An error of the handler's own is one line of the log; the others are served on."""
    server = make_server()
    with connect(server) as one, connect(server) as other:
        monkeypatch.setattr(fake_metadata.Handler, "receive", defect)
        wait_for(lambda: server.serve_once() or not server.unfinished, what="the end of both")
        monkeypatch.undo()

        assert receive_all(one) == receive_all(other) == b""
    with connect(server) as client:
        client.sendall(REQUEST)
        server.call_later(1, lambda: None)  # so that serve_once waits no longer
        wait_for(lambda: server.serve_once() or ready(client), what="the answer")
        assert b" 200 OK\r\n" in client.recv(65536)


def defect(handler):
    raise ZeroDivisionError("a secret")
    yield


def test_error_of_a_method_is_a_500(make_metadata, monkeypatch):
    """An error while a request is answered is a 500 that tells nothing, and a line of the log."""
    monkeypatch.setattr(fake_metadata.Handler, "do_GET", lambda handler: 1 // 0)

    loop, client = converse(make_metadata(), fake_metadata.SessionTokens(b"key"), REQUEST)

    assert client.sent.endswith(b'{"error": "internal server error"}')
    assert loop.noted[-1].startswith("ZeroDivisionError in ")


@pytest.mark.parametrize("headers, is_closed", [
    (b"", True), (b"Connection: close\r\n", True), (b"Connection: keep-alive\r\n", False)])
def test_close_connection(make_metadata, headers, is_closed):
    """close_connection is True when the request in front was the last one."""
    seen = []

    class Seeing(fake_metadata.Handler):
        def handle_one_request(self):
            yield from super().handle_one_request()
            seen.append(self.close_connection)

    data = REQUEST[:-2] + headers + b"\r\n"
    converse(make_metadata(), fake_metadata.SessionTokens(b"key"), data, handler_class=Seeing)

    assert seen == [is_closed]


def test_inherited_names_are_those_of_http_server():
    """What is not written anew is inherited as it is: tables and helpers that others may use."""
    base = http.server.BaseHTTPRequestHandler

    for name in "responses", "date_time_string", "address_string", "log_error", "monthname":
        assert name not in vars(fake_metadata.Handler)
        assert getattr(fake_metadata.Handler, name) is getattr(base, name)


def test_date_time_string():
    """date_time_string() writes a time in the form of Date; version_string() is our Server."""
    handler = fake_metadata.Handler(None, ("127.0.0.1", 1), None)

    assert handler.date_time_string(1796112000) == "Tue, 01 Dec 2026 08:00:00 GMT"
    assert handler.version_string() == "EC2ws"
    assert handler.responses[404][0] == "Not Found"


def test_send_error(make_metadata):
    """send_error() answers with a status and ends the connection."""
    loop, client = converse(make_metadata(), fake_metadata.SessionTokens(b"key"), b"no request\r\n")

    assert client.sent.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close\r\n" in client.sent
    assert loop.noted[2] == 400 and loop.noted[-1].startswith("malformed")


def test_service_actions_runs_timers_in_order(make_server):
    """service_actions() calls what is due, the earliest first, and nothing twice."""
    server, called = make_server(), []
    for delay in (0.002, 0, 0.001, 60):
        server.call_later(delay, lambda delay=delay: called.append(delay))

    wait_for(lambda: server.serve_once() or len(called) == 3, what="the timers")
    server.service_actions()

    assert called == [0, 0.001, 0.002]


def test_call_soon_threadsafe(serving):
    """What another thread has called is called in the thread of the server, at once."""
    server, called = serving(), threading.Event()
    threads = []

    server.call_soon_threadsafe(lambda: (threads.append(threading.current_thread()), called.set()))

    assert called.wait(30) and threads[0] is not threading.current_thread()
    server.shutdown()


def test_error_of_a_callback_is_logged(make_server, tmp_path):
    """An error in a callback stops nothing; the log has its kind and place, not its text."""
    server = make_server()
    server.call_soon_threadsafe(lambda: {}["a secret"])

    server.serve_once()

    text = (tmp_path / "server.log").read_text()
    assert "internal error: KeyError in <lambda>" in text and "a secret" not in text


def test_two_servers_in_one_process(serving):
    """Servers in threads of their own know nothing of each other."""
    servers = [serving("[instance]\ninstance-id = i-0000000%d\n" % number) for number in range(3)]

    for number, server in enumerate(servers):
        with connect(server) as client:
            client.sendall(REQUEST)
            assert client.recv(65536).endswith(b"i-0000000%d" % number)
    for server in servers:
        server.shutdown()
