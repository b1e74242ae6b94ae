"""What comes back for which bytes: tables of (bytes sent, statuses expected, kept or closed)."""
import json
import re
import socket
import stat

import pytest

import fake_metadata
from service import CREDENTIALS, TOKEN_HEADER, TTL_HEADER, Service, wait_for
from wire import PROBE, Wire, get, request

KIB = 1024
TOKEN_PATH = "/latest/api/token"
TTL = TTL_HEADER + ": 60"
EXPECT = "Expect: 100-continue"
CHUNKED = "Transfer-Encoding: chunked"
LONG = 2000  # bytes: rows over this are not sent byte by byte


def put(*headers, path=TOKEN_PATH, **options):
    """Return the bytes of a token PUT."""
    return request("PUT " + path, *headers, **options)


def chunked(body):
    """Return the bytes of a token PUT with a chunked body."""
    return put(TTL, CHUNKED, body=body)


def head_of(size):
    """Return a GET whose head has so many bytes."""
    return get("X: " + "x" * (size - len(get("X: "))))


# Each row: what it is, bytes sent, "STATUS... kept" or "STATUS... closed".
WELL_FORMED = [
    ("plain", get(), "200 kept"),
    ("no such thing", get(path="/latest/meta-data/nothing"), "404 kept"),
    ("no blank after the colon", get("X:y"), "200 kept"),
    ("tabs and blanks around a value", get("X: \t y \t "), "200 kept"),
    ("tab inside a value", get("X: a\tb"), "200 kept"),
    ("empty value", get("X:"), "200 kept"),
    ("blank value", get("X: "), "200 kept"),
    ("name of all characters allowed", get("!#$%&'*+-.^_`|~09azAZ: y"), "200 kept"),
    ("bytes above 127 in a value", get("X: \xe9\xff"), "200 kept"),
    ("colons in a value", get("X: a:b::c"), "200 kept"),
    ("Host in another case", request("GET /", "hOsT: 127.0.0.1", host=None), "200 kept"),
    ("unknown header twice", get("X: a", "X: b"), "200 kept"),
    ("empty line before", b"\r\n" + get(), "200 kept"),
    ("empty line between", get() + b"\r\n" + get(), "200 200 kept"),
    ("empty line behind", get(keep=False) + b"\r\n", "200 closed"),
    ("upgrade to HTTP/2 offered",
     get("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
     "200 closed"),
    ("upgrade to WebSocket offered", get("Connection: Upgrade", "Upgrade: websocket"),
     "200 closed"),
    ("Range", get("Range: bytes=0-0"), "200 kept"),
    ("conditional", get("If-None-Match: *", "If-Modified-Since: Tue, 01 Dec 2037 08:00:00 GMT"),
     "200 kept"),
    ("Accept that nothing here is", get("Accept: application/xml", "Accept-Encoding: br"),
     "200 kept"),
    ("X-Forwarded-For on a GET", get("X-Forwarded-For: 10.0.0.1"), "200 kept"),
    ("minor version to come", get("Connection: keep-alive", path="/ HTTP/1.2"), "200 kept"),
    ("HTTP/1.0", request("GET / HTTP/1.0", host=None), "200 closed"),
    ("HTTP/1.0 with Host", request("GET / HTTP/1.0"), "200 closed"),
    ("HTTP/1.0 kept", request("GET / HTTP/1.0", "Connection: keep-alive"), "200 kept"),
    ("HTTP/1.0 kept, in capitals", request("GET / HTTP/1.0", "Connection: Keep-Alive"), "200 kept"),
    ("HTTP/1.0 with an expectation", request("GET / HTTP/1.0", EXPECT), "200 closed"),
    ("close", get("Connection: close"), "200 closed"),
    ("close in capitals", get("CONNECTION: CLOSE"), "200 closed"),
    ("close among others", get("Connection: x, close ,y"), "200 closed"),
    ("close in a second line", get("Connection: x", "Connection: close"), "200 closed"),
    ("close and keep-alive", get("Connection: keep-alive, close"), "200 closed"),
    ("keep-alive", get("Connection: keep-alive"), "200 kept"),
    ("not quite close", get("Connection: keep-alive, closed"), "200 kept"),
    ("no Connection", get(keep=False), "200 closed"),
    ("not quite keep-alive", get("Connection: keep-alived"), "200 closed"),
    ("close, and another request", get("Connection: close") + get(), "200 closed"),
    ("close after an error", get("Connection: close", path="/nothing"), "404 closed"),
    ("target of 8 KiB", get(path="/" + "x" * (8 * KIB - 1)), "404 kept"),
    ("head of nearly 16 KiB", head_of(16 * KIB), "200 kept"),
    ("a hundred headers", get(*["X-%d: y" % n for n in range(100)]), "200 kept"),
    ("GET with a body", get("Content-Length: 5", body=b"hello"), "200 kept"),
    ("body that looks like a request", get("Content-Length: %d" % len(PROBE), body=PROBE),
     "200 kept"),
    ("GET with a chunked body", get(CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"), "200 kept"),
    ("body of 16 KiB", get("Content-Length: %d" % (16 * KIB), body=b"x" * 16 * KIB), "200 kept"),
    ("Content-Length with blanks around", get("Content-Length: \t5 \t", body=b"hello"), "200 kept"),
    ("Content-Length 0", get("Content-Length: 0"), "200 kept"),
]

METHODS = [
    ("HEAD", request("HEAD /latest/"), "200 kept"),
    ("HEAD of nothing", request("HEAD /nothing"), "404 kept"),
    ("OPTIONS", request("OPTIONS /latest/meta-data/instance-id"), "200 kept"),
    ("OPTIONS of nothing", request("OPTIONS /nothing"), "404 kept"),
    ("OPTIONS of the server", request("OPTIONS *"), "200 kept"),
    ("OPTIONS of the token", request("OPTIONS " + TOKEN_PATH), "200 kept"),
    ("OPTIONS as a browser asks before",
     request("OPTIONS " + TOKEN_PATH, "Origin: http://127.0.0.1",
             "Access-Control-Request-Method: PUT"),
     "200 kept"),
    ("POST", request("POST /latest/", "Content-Length: 5", body=b"hello"), "403 kept"),
    ("POST chunked", request("POST /latest/", CHUNKED, body=b"5\r\nhello\r\n0\r\n\r\n"),
     "403 kept"),
    ("DELETE", request("DELETE /latest/"), "403 kept"),
    ("PATCH", request("PATCH /latest/"), "403 kept"),
    ("TRACE", request("TRACE /latest/"), "403 kept"),
    ("PUT elsewhere", put(TTL, path="/latest/"), "403 kept"),
    ("PUT of a token, dated version", put(TTL, path="/2021-01-03/api/token"), "403 kept"),
    ("POST of a token", request("POST " + TOKEN_PATH, TTL), "405 kept"),
    ("DELETE of a token", request("DELETE " + TOKEN_PATH, TTL), "405 kept"),
    ("PATCH of a token", request("PATCH " + TOKEN_PATH, TTL), "405 kept"),
    ("PUT of a token with a slash", request("PUT %s/" % TOKEN_PATH, TTL), "200 kept"),
    ("PUT of a token, dated", request("PUT /2021-03-23/api/token", TTL), "403 kept"),
    ("POST of a token, dated", request("POST /2021-03-23/api/token", TTL), "403 kept"),
    ("GET of a token", get(path=TOKEN_PATH), "405 kept"),
    ("HEAD of a token", request("HEAD " + TOKEN_PATH), "405 kept"),
    ("unknown method", request("BREW /"), "501 closed"),
    ("method in lower case", request("get /"), "501 closed"),
    ("method of odd characters", request("!#$%&'*+-.^_`|~ /"), "501 closed"),
    ("method that is a name of Python", request("__class__ /"), "501 closed"),
    ("a long method", request("G" * 1000 + " /"), "501 closed"),
    ("CONNECT", request("CONNECT 127.0.0.1:80"), "400 closed"),
    ("CONNECT of a path", request("CONNECT /"), "403 kept"),
]

REQUEST_LINES = [
    ("HTTP/0.9", b"GET /\r\n", "400 closed"),
    ("HTTP/0.9 with an empty line", b"GET /\r\n\r\n", "400 closed"),
    ("no target", b"GET HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("nothing but a method", b"GET\r\n\r\n", "400 closed"),
    ("two blanks", request("GET  /"), "400 closed"),
    ("two blanks before the version", request("GET /  HTTP/1.1"), "400 closed"),
    ("blank before", b" " + get(), "400 closed"),
    ("tab between", b"GET\t/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("tab before the version", b"GET /\tHTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("blank behind", b"GET / HTTP/1.1 \r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("word behind", b"GET / HTTP/1.1 x\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("blank in the target", request("GET /a b"), "400 closed"),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version in lower case", b"GET / http/1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("blank in the version", b"GET / HTTP/ 1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version without minor", b"GET / HTTP/1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version with an empty minor", b"GET / HTTP/1.\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version without major", b"GET / HTTP/.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version with two digits", b"GET / HTTP/1.10\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version with a leading zero", b"GET / HTTP/01.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version with a sign", b"GET / HTTP/+1.1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version with a comma", b"GET / HTTP/1,1\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("version of letters", b"GET / HTTP/a.b\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("another protocol", b"GET / ICE/1.0\r\nHost: 127.0.0.1\r\n\r\n", "400 closed"),
    ("RTSP", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", "400 closed"),
    ("HTTP/2.0", request("GET / HTTP/2.0"), "505 closed"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 closed"),
    ("HTTP/0.9 by name", request("GET / HTTP/0.9"), "505 closed"),
    ("HTTP/9.9", request("GET / HTTP/9.9"), "505 closed"),
    ("colon in the method", request("GET: /"), "400 closed"),
    ("bracket in the method", request("(GET) /"), "400 closed"),
    ("byte above 127 in the method", request("G\xc9T /"), "400 closed"),
    ("NUL in the method", request("G\0T /"), "400 closed"),
    ("NUL in the target", request("GET /\0"), "400 closed"),
    ("control character in the target", request("GET /\x1b[0m"), "400 closed"),
    ("DEL in the target", request("GET /\x7f"), "400 closed"),
    ("byte above 127 in the target", request("GET /\xe9"), "400 closed"),
    ("fragment", request("GET /latest/#x"), "400 closed"),
    ("target without a slash", request("GET latest/"), "400 closed"),
    ("target of a query alone", request("GET ?x"), "400 closed"),
    ("asterisk on a GET", request("GET *"), "400 closed"),
    ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"x" * 60 + b"\r\n\r\n", "400 closed"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", "400 closed"),
    ("zeros", b"\0" * 20, "400 closed"),
    ("a quote alone", b'"', "400 closed"),
    ("LF alone", b"\n", "400 closed"),
    ("LF before", b"\n" + get(), "400 closed"),
    ("blank line before", b" \r\n" + get(), "400 closed"),
    ("header before the request line", b"Host: 127.0.0.1\r\n" + get(), "400 closed"),
    ("target over 8 KiB", get(path="/" + "x" * 8 * KIB), "414 closed"),
    ("target over 8 KiB that goes on", b"GET /" + b"x" * 10 * KIB, "414 closed"),
    ("target of 100 KiB", get(path="/" + "x" * 100 * KIB), "414 closed"),
    ("method that goes on", b"G" * 20 * KIB, "501 closed"),
    ("long method, cut off", b"G" * 9 * KIB, "501 closed"),
    ("long method", request("G" * 9 * KIB + " /"), "501 closed"),
]

TARGETS = [
    ("absolute", get(path="http://127.0.0.1/latest/"), "200 kept"),
    ("absolute with a port", get(path="http://127.0.0.1:8000/latest/"), "200 kept"),
    ("absolute in capitals", get(path="HTTP://LOCALHOST/latest/"), "200 kept"),
    ("absolute without a path", get(path="http://127.0.0.1"), "200 kept"),
    ("absolute with a query alone", get(path="http://127.0.0.1?x"), "200 kept"),
    ("absolute, IPv6", get(path="http://[fd00:ec2::254]/latest/"), "200 kept"),
    ("absolute, two allowed hosts", get(path="http://169.254.169.254/latest/"), "200 kept"),
    ("absolute, host not allowed", get(path="http://evil.example/latest/"), "403 kept"),
    ("absolute, Host not allowed", get(path="http://127.0.0.1/latest/", host="evil.example"),
     "403 kept"),
    ("absolute, HTTP/1.0, not allowed", request("GET http://evil.example/ HTTP/1.0", host=None),
     "403 closed"),
    ("absolute, name and password", get(path="http://127.0.0.1@evil.example/"), "400 closed"),
    ("absolute, name before", get(path="http://evil.example@127.0.0.1/"), "400 closed"),
    ("absolute, odd port", get(path="http://127.0.0.1:x/"), "400 closed"),
    ("absolute, no host", get(path="http:///latest/"), "40[03] (kept|closed)"),
    ("absolute, other scheme", get(path="https://127.0.0.1/latest/"), "400 closed"),
    ("absolute, ftp", get(path="ftp://127.0.0.1/latest/"), "400 closed"),
    ("absolute, backslash", get(path="http://127.0.0.1\\@evil.example/"), "40[03] (kept|closed)"),
    ("absolute, backslash before the rest", get(path="http://evil.example\\127.0.0.1/"),
     "40[03] (kept|closed)"),
    ("absolute, encoded host", get(path="http://127.0.0.1%2eevil.example/"),
     "40[03] (kept|closed)"),
    ("two slashes before a name", get(path="//evil.example/latest/"), "404 kept"),
    ("slashes", get(path="//latest///meta-data//instance-id/"), "200 kept"),
    ("dots", get(path="/./latest/./meta-data/./instance-id/."), "200 kept"),
    ("encoded", get(path="/latest/meta-data/%69nstance-i%64"), "200 kept"),
    ("encoded slash", get(path="/latest%2Fmeta-data%2finstance-id"), "200 kept"),
    ("encoded twice", get(path="/latest/meta-data/%2569nstance-id"), "404 kept"),
    ("query", get(path="/latest/meta-data/instance-id?x=1&y=/../.."), "200 kept"),
    ("two question marks", get(path="/latest/??"), "200 kept"),
    ("up", get(path="/latest/dynamic/../meta-data/instance-id"), "200 kept"),
    ("up, encoded", get(path="/latest/dynamic/%2e%2E/meta-data/instance-id"), "200 kept"),
    ("up to the root and above", get(path="/../x/../../latest/meta-data/instance-id"), "200 kept"),
    ("up from an empty part", get(path="/latest/dynamic//../../meta-data/instance-id"),
     "200 kept"),
    ("up and out", get(path="/../../../../etc/passwd"), "404 kept"),
    ("encoded up", get(path="/latest/%2e%2e/%2E%2E/etc/passwd"), "404 kept"),
    ("overlong UTF-8", get(path="/latest/%c0%ae%c0%ae/x"), "404 kept"),
    ("UTF-8", get(path="/latest/%E2%82%AC"), "404 kept"),
    ("encoded NUL", get(path="/latest/meta-data/instance-id%00"), "404 kept"),
    ("encoded line end", get(path="/latest/%0d%0aX:%20y"), "404 kept"),
    ("half an encoding", get(path="/latest/%"), "404 kept"),
    ("odd encoding", get(path="/latest/%zz%+1"), "404 kept"),
    ("a leaf as a directory", get(path="/latest/meta-data/instance-id/x"), "404 kept"),
    ("backslashes", get(path="\\latest\\"), "400 closed"),
    ("quote and angle", get(path='/"<script>'), "404 kept"),
    ("template", get(path="/{0}/%7b0.__class__%7d/%s%n"), "404 kept"),
    ("four thousand slashes", get(path="/" * 4000 + "latest/meta-data/instance-id"), "200 kept"),
]

HOSTS = [
    ("none", request("GET /", host=None), "200 kept"),
    ("two", get("Host: 127.0.0.1"), "400 closed"),
    ("two that differ", get("Host: evil.example"), "400 closed"),
    ("two in cases", get("hOST: 127.0.0.1"), "400 closed"),
] + [(host or "empty", get(host=host), expected) for host, expected in [
    ("169.254.169.254", "200 kept"), ("169.254.169.254:80", "200 kept"), ("localhost", "200 kept"),
    ("LocalHost:8000", "200 kept"), ("[::1]", "200 kept"), ("[::1]:8000", "200 kept"),
    ("[fd00:ec2::254]", "200 kept"), ("[FD00:EC2::254]:80", "200 kept"), ("127.0.0.1:", "200 kept"),
    ("evil.example", "403 kept"), ("127.0.0.1.evil.example", "403 kept"),
    ("localhost.evil.example", "403 kept"), ("169.254.169.254.nip.io", "403 kept"),
    ("evil.example:80", "403 kept"), ("0.0.0.0", "200 kept"), ("127.1", "403 kept"),
    ("2130706433", "403 kept"), ("[::ffff:127.0.0.1]", "200 kept"), ("10.0.0.1", "200 kept"),
    ("localhost.", "200 kept"), ("127.0.0.1.", "200 kept"), ("localhost..", "403 kept"),
    ("host.docker.internal:8000", "200 kept"), ("host.containers.internal", "200 kept"),
    ("", "403 kept"), ("127.0.0.1\xe9", "400 closed"), ("{", "400 closed"), ("a}", "400 closed"),
    ("[::1", "400 closed"), ("::1]", "400 closed"), ("[:::1]", "400 closed"), ("%zz", "400 closed"),
    ("[127.0.0.1]", "400 closed"), ("a\"b", "400 closed"), ("%41", "403 kept"),
    ("127.0.0.1:x", "400 closed"), ("127.0.0.1:80:80", "400 closed"),
    ("127.0.0.1:999999", "400 closed"), ("evil@127.0.0.1", "400 closed"),
    ("127.0.0.1/", "400 closed"), ("127.0.0.1#", "400 closed"), ("127.0.0.1?", "400 closed"),
    ("127.0.0.1 evil.example", "400 closed"), ("127.0.0.1, evil.example", "400 closed"),
    ("127.0.0.1,evil.example", "40[03] (kept|closed)"), ("[::1", "400 closed"),
    ("::1]", "400 closed"), ("[evil]", "400 closed"), ("[::1]x", "400 closed"),
    ("http://127.0.0.1", "400 closed"), ("127.0.0.1\0", "400 closed")]]

HEADER_LINES = [(name, get(line), "400 closed") for name, line in [
    ("bare LF", "X: y\nZ: z"), ("bare LF and a blank", "X: y\n Z: z"), ("bare CR", "X: y\rZ: z"),
    ("bare CR at the end", "X: y\r"), ("LF CR", "X: y\n\rZ: z"), ("bare LF in a name", "X\nY: z"),
    ("blank before the colon", "X : y"), ("tab before the colon", "X\t: y"),
    ("CR before the colon", "X\r: y"), ("folded", "X: y\r\n z"),
    ("folded with a tab", "X: y\r\n\tz"), ("folded twice", "X: y\r\n z\r\n z"),
    ("folded blank line", "X: y\r\n \r\nZ: z"), ("no colon", "X"), ("a colon alone", ":"),
    ("no name", ": y"), ("blank before the name", " X: y"), ("blank in the name", "X Y: z"),
    ("NUL in a value", "X: \0"), ("NUL in a name", "X\0: y"), ("SOH in a value", "X: \x01"),
    ("BS in a value", "X: \x08"), ("VT in a value", "X: \x0b"), ("FF in a value", "X: \x0c"),
    ("ESC in a value", "X: \x1b[2J"), ("DEL in a value", "X: \x7f"),
    ("byte above 127 in a name", "\xe9: y"), ("quote in a name", '"X": y'),
    ("bracket in a name", "X(y): z"), ("slash in a name", "X/y: z"),
    ("at sign in a name", "X@y: z"), ("braces in a name", "{X}: y"), ("comma in a name", "X,Y: z"),
    ("equals sign for a colon", "X=y"), ("semicolon for a colon", "X; y"),
    ("request line once more", "GET / HTTP/1.1")]] + [
    ("folded line first", b"GET / HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n", "400 closed"),
    ("folded Host", request("GET /", "Host:\r\n 127.0.0.1", host=None), "400 closed"),
    ("LF everywhere", get().replace(b"\r\n", b"\n"), "400 closed"),
    ("LF after the request line", get().replace(b"\r\n", b"\n", 1), "400 closed"),
    ("LF for the empty line", get()[:-2] + b"\n", "400 closed"),
    ("CR everywhere", get().replace(b"\r\n", b"\r"), "400 closed"),
    ("CR for the empty line", get()[:-2] + b"\rX", "400 closed"),
    ("bad line before X-Forwarded-For", put(TTL, "bad line", "X-Forwarded-For: 1"), "400 closed"),
    ("blank behind X-Forwarded-For", put(TTL, "X-Forwarded-For : 1"), "400 closed"),
    ("X-Forwarded-For folded away", put(TTL, "X: y\r\n X-Forwarded-For: 1"), "400 closed"),
    ("X-Forwarded-For behind a bare CR", put(TTL, "X: y\rX-Forwarded-For: 1"), "400 closed"),
    ("X-Forwarded-For behind a bare LF", put(TTL, "X: y\nX-Forwarded-For: 1"), "400 closed"),
    ("TTL made by a bare CR", put("X: y\r%s" % TTL), "400 closed"),
    ("head over 16 KiB", head_of(16 * KIB + 8), "431 closed"),
    ("head of 100 KiB", head_of(100 * KIB), "431 closed"),
    ("head that goes on", b"GET / HTTP/1.1\r\nX: " + b"x" * 17 * KIB, "431 closed"),
    ("ten thousand headers", get(*["X: y"] * 10000), "431 closed"),
    ("more header lines than anybody sends", get(*["X-%d: y" % n for n in range(128)]),
     "431 closed"),
    ("a name of 17 KiB", get("X" * 17 * KIB + ": y"), "431 closed"),
]

LENGTHS = [("Content-Length %r" % length,
            put(TTL, "Content-Length: " + length, body=b"0123456789"), expected)
           for length, expected in [
    ("10", "200 kept"), ("+10", "400 closed"), ("-10", "400 closed"), ("-0", "400 closed"),
    ("+0", "400 closed"), ("1_0", "400 closed"), ("010", "400 closed"), ("00", "400 closed"),
    ("0x0a", "400 closed"), ("a", "400 closed"), ("10.0", "400 closed"), ("1e1", "400 closed"),
    ("1 0", "400 closed"), ("10, 10", "400 closed"), ("10, 5", "400 closed"), ("10,", "400 closed"),
    ("10;", "400 closed"), ("", "400 closed"), ('"10"', "400 closed"), ("\xb2", "400 closed"),
    ("\xd9\xa1\xd9\xa0", "400 closed"), ("16385", "413 closed"), ("4294967306", "413 closed"),
    ("18446744073709551626", "413 closed"), ("9" * 5000, "413 closed")]] + [
    ("two Content-Lengths", put(TTL, "Content-Length: 5", "Content-Length: 5", body=b"hello"),
     "400 closed"),
    ("two that differ", put(TTL, "Content-Length: 5", "Content-Length: 6", body=b"hello!"),
     "400 closed"),
    ("two, one of them no number", put(TTL, "Content-Length: 0", "Content-Length: x"),
     "400 closed"),
    ("blank before the colon", put(TTL, "Content-Length : 5", body=b"hello"), "400 closed"),
    ("with Transfer-Encoding", put(TTL, "Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"),
     "400 closed"),
    ("Transfer-Encoding first", put(TTL, CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"),
     "400 closed"),
    ("with Transfer-Encoding on a GET", get(CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"),
     "400 closed"),
    ("a megabyte, sent at once", put(TTL, "Content-Length: 1000000", body=b"x" * 1000000),
     "413 closed"),
    ("more chunks than anybody sends", put(TTL, CHUNKED, body=b"1\r\nx\r\n" * 65 + b"0\r\n\r\n"),
     "413 closed"),
    ("a malformed head before a megabyte", get("bad line", body=b"x" * 1000000), "400 closed"),
]

CODINGS = [("Transfer-Encoding %r" % coding,
            put(TTL, "Transfer-Encoding: " + coding, body=b"0\r\n\r\n"), expected)
           for coding, expected in [
    ("chunked", "200 kept"), ("Chunked", "200 kept"), ("CHUNKED \t", "200 kept"),
    ("gzip", "400 closed"), ("identity", "400 closed"), ("gzip, chunked", "400 closed"),
    ("chunked, gzip", "400 closed"), ("chunked, chunked", "400 closed"),
    ("chunked, identity", "400 closed"), ("chunked,", "400 closed"), (", chunked", "400 closed"),
    ("xchunked", "400 closed"), ("chunkedx", "400 closed"), ("chunk", "400 closed"),
    ("chunked;x=y", "400 closed"), ('"chunked"', "400 closed"), ("", "400 closed"),
    ("chunked\x0b", "400 closed"), ("\x0cchunked", "400 closed"), ("chun\r\n ked", "400 closed"),
    ("\r\n chunked", "400 closed"), ("chunked\0", "400 closed"), ("\xa0chunked", "400 closed")]] + [
    ("two Transfer-Encodings", put(TTL, CHUNKED, CHUNKED, body=b"0\r\n\r\n"), "400 closed"),
    ("two that differ", put(TTL, "Transfer-Encoding: gzip", CHUNKED, body=b"0\r\n\r\n"),
     "400 closed"),
    ("blank before the colon", put(TTL, "Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
     "400 closed"),
    ("on HTTP/1.0", request("PUT %s HTTP/1.0" % TOKEN_PATH, TTL, CHUNKED, body=b"0\r\n\r\n"),
     "400 closed"),
    ("on HTTP/1.0, kept",
     request("GET / HTTP/1.0", CHUNKED, "Connection: keep-alive", body=b"0\r\n\r\n"), "400 closed"),
]

CHUNKS = [("chunks %r" % body[:30], chunked(body), expected) for body, expected in [
    (b"0\r\n\r\n", "200 kept"), (b"5\r\nhello\r\n0\r\n\r\n", "200 kept"),
    (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "200 kept"),
    (b"0005\r\nhello\r\n000\r\n\r\n", "200 kept"), (b"2\r\n\r\n\r\n0\r\n\r\n", "200 kept"),
    (b"5;x\r\nhello\r\n0;y=z\r\n\r\n", "200 kept"),
    (b'5;x="y; z"\r\nhello\r\n0\r\n\r\n', "200 kept"),
    (b'5;x="\\"";y=z;w\r\nhello\r\n0\r\n\r\n', "200 kept"),
    (b"5;\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"5;x=\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b'5;x="y\r\nhello\r\n0\r\n\r\n', "400 closed"),
    (b'5;x="y"z\r\nhello\r\n0\r\n\r\n', "400 closed"),
    (b"5;x=y z\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5; x = y; z\r\nhello\r\n0\r\n\r\n", "200 kept"),
    (b"5;;x\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"0\r\nX: y\r\n\r\n", "200 kept"), (b"0\r\nX: y\r\nZ:\r\n\r\n", "200 kept"),
    (b"0\r\nContent-Length: 5\r\n\r\n", "200 kept"),
    (b"0\r\nX-Forwarded-For: 1\r\nHost: evil.example\r\n\r\n", "200 kept"),
    (b"x\r\n", "400 closed"), (b"\r\nhello", "400 closed"),
    (b"-5\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"+5\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"0x5\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n", "400 closed"),
    (b" 5\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"5 \r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5\t;x\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"5\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5\rhello\r\n0\r\n\r\n", "400 closed"), (b"5\r\nhello\n0\r\n\r\n", "400 closed"),
    (b"5\r\nhello0\r\n\r\n", "400 closed"), (b"5\r\nhello!\r\n0\r\n\r\n", "400 closed"),
    (b"5\r\nhel\r\n0\r\n\r\n", "400 closed"), (b"5;x\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5;\rx\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"5;\0\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5;\x7f\r\nhello\r\n0\r\n\r\n", "400 closed"), (b"5,x\r\nhello\r\n0\r\n\r\n", "400 closed"),
    (b"5\r\nhello\r\n0\n\n", "400 closed"), (b"0\r\nX: y\n\r\n", "400 closed"),
    (b"0\r\nX : y\r\n\r\n", "400 closed"), (b"0\r\n X: y\r\n\r\n", "400 closed"),
    (b"0\r\nbad line\r\n\r\n", "400 closed"), (b"0\r\nX: y\r\n z\r\n\r\n", "400 closed"),
    (b"0\r\nX: \0\r\n\r\n", "400 closed"), (b"\xb2\r\nhi\r\n0\r\n\r\n", "400 closed"),
    (b"4001\r\n", "413 closed"), (b"FFFFFFFF\r\n", "413 closed"),
    (b"fffffffffffffffff\r\n", "4(00|13) closed"), (b"5;" + b"x" * 20 * KIB, "413 closed"),
    (b"1\r\nx\r\n" * 5000, "413 closed"), (b"0\r\nX: " + b"x" * 20 * KIB, "4(13|31) closed"),
    (b"0\r\n" + b"X: y\r\n" * 5000, "4(13|31) closed")]]

EXPECTATIONS = [
    ("on the token PUT", put(TTL, EXPECT, CHUNKED, body=b"0\r\n\r\n"), "200 kept"),
    ("with a length", put(TTL, EXPECT, "Content-Length: 2", body=b"hi"), "200 kept"),
    ("without a body", put(TTL, EXPECT, "Content-Length: 0"), "200 kept"),
    ("in capitals", put(TTL, "Expect: 100-CONTINUE", "Content-Length: 0"), "200 kept"),
    ("on a GET", get(EXPECT), "417 closed"),
    ("on a GET with a body", get(EXPECT, "Content-Length: 5", body=b"hello"), "417 closed"),
    ("on a PUT elsewhere", put(TTL, EXPECT, path="/latest/"), "417 closed"),
    ("another one", put(TTL, "Expect: 200-ok"), "417 closed"),
    ("an empty one", put(TTL, "Expect:"), "417 closed"),
    ("two", put(TTL, EXPECT, EXPECT), "4(00|17) closed"),
    ("a body too large", put(TTL, EXPECT, "Content-Length: 99999"), "413 closed"),
]

TOKEN_PUTS = [("TTL %r" % ttl, put("%s: %s" % (TTL_HEADER, ttl)), expected) for ttl, expected in [
    ("1", "200 kept"), ("21600", "200 kept"), ("0", "200 kept"), (" \t60 ", "200 kept"),
    ("-1", "400 kept"), ("21601", "400 kept"), ("invalid", "400 kept"), ("", "400 kept"),
    ("+60", "400 kept"), ("60.0", "400 kept"), ("6e1", "400 kept"), ("0x10", "400 kept"),
    ("1_0", "400 kept"), ("60s", "400 kept"), ("60 60", "400 kept"), ("60, 60", "400 kept"),
    ("\xb2", "400 kept"), ("\xd9\xa6", "400 kept"), ("9" * 5000, "400 kept")]] + [
    ("no TTL", put(), "400 kept"),
    ("two TTLs", put(TTL, TTL), "400 closed"),
    ("TTL in capitals", put(TTL.upper()), "200 kept"),
    ("slash at the end", put(TTL, path=TOKEN_PATH + "/"), "200 kept"),
    ("two slashes", put(TTL, path="//latest//api/token"), "200 kept"),
    ("without Content-Length", put(TTL), "200 kept"),
    ("with Content-Length 0", put(TTL, "Content-Length: 0"), "200 kept"),
    ("as a form", put(TTL, "Content-Type: application/x-www-form-urlencoded", "Content-Length: 0"),
     "200 kept"),
    ("with a body", put(TTL, "Content-Length: 2", body=b"{}"), "200 kept"),
    ("with a token that is none", put(TTL, TOKEN_HEADER + ": x"), "200 kept"),
    ("HTTP/1.0", request("PUT %s HTTP/1.0" % TOKEN_PATH, TTL), "200 closed"),
    ("through a proxy of HTTP", put(TTL, path="http://169.254.169.254" + TOKEN_PATH), "200 kept"),
] + [(line, put(TTL, line), "403 kept") for line in [
    "X-Forwarded-For: 10.0.0.1", "x-forwarded-for: 10.0.0.1", "X-FORWARDED-FOR: 10.0.0.1",
    "X-Forwarded-For:", "X-Forwarded-For: \t ", "X-Forwarded-For: 10.0.0.1, 10.0.0.2",
    "X-Forwarded-For: \xe9"]] + [
    ("X-Forwarded-For twice", put(TTL, "X-Forwarded-For:", "X-Forwarded-For: 1"), "403 kept"),
    ("X-Forwarded-For first", put("X-Forwarded-For: 1", TTL), "403 kept"),
    ("X-Forwarded-For chunked", put(TTL, "X-Forwarded-For: 1", CHUNKED, body=b"0\r\n\r\n"),
     "403 kept"),
    ("X-Forwarded-For without TTL", put("X-Forwarded-For: 1"), "403 kept"),
    ("other forwarding headers",
     put(TTL, "Forwarded: for=10.0.0.1", "X-Forwarded-Host: x", "Via: 1.1 x"), "200 kept"),
]

TOKEN_USES = [("token %s" % name, get("%s: %s" % (TOKEN_HEADER, token)), "401 kept")
              for name, token in [
    ("empty", ""), ("of one letter", "x"), ("that looks right", "AQAEA" + "x" * 49 + "=="),
    ("of 56 letters", "x" * 56), ("of 56 odd bytes", "\xff" * 56),
    ("too long", "AQAEA" + "x" * 8000), ("with a blank", "AQAEA" + " " * 49 + "==")]] + [
    ("two tokens", get(TOKEN_HEADER + ": x", TOKEN_HEADER + ": y"), "400 closed"),
    ("bad token, no such thing", get(TOKEN_HEADER + ": x", path="/nothing"), "401 kept"),
    ("bad token, POST", request("POST /", TOKEN_HEADER + ": x"), "401 kept"),
    ("bad token, HEAD", request("HEAD /", TOKEN_HEADER + ": x"), "401 kept"),
]

PIPELINES = [
    ("two", get() + get(), "200 200 kept"),
    ("all kinds", get() + put(TTL) + get(path="/x") + request("POST /") + get(path=TOKEN_PATH),
     "200 200 404 403 405 kept"),
    ("bodies between",
     put(TTL, "Content-Length: 2", body=b"hi") + chunked(b"1\r\nx\r\n0\r\n\r\n") + get(),
     "200 200 200 kept"),
    ("bad one last", get() + b"bad\r\n\r\n", "200 400 closed"),
    ("bad one between", get() + get("bad line") + get(), "200 400 closed"),
    ("close between", get() + get("Connection: close") + get(), "200 200 closed"),
    ("half of one behind", get() + b"GET / HT", "200 closed at the end"),
    ("nothing", b"", "closed at the end"),
    ("empty lines alone", b"\r\n\r\n\r\n", "closed at the end"),
    ("half a request", b"GET /latest/ HTTP/1.1\r\nHost", "closed at the end"),
    ("half a body", put(TTL, "Content-Length: 5", body=b"hel"), "closed at the end"),
    ("half a chunk", chunked(b"5\r\nhel"), "closed at the end"),
    ("chunks without an end", chunked(b"5\r\nhello\r\n"), "closed at the end"),
    ("a whole one before the end", get(), "200 closed at the end"),
]

TABLES = dict(well_formed=WELL_FORMED, method=METHODS, request_line=REQUEST_LINES, target=TARGETS,
              host=HOSTS, header_line=HEADER_LINES, length=LENGTHS, coding=CODINGS, chunk=CHUNKS,
              expectation=EXPECTATIONS, token_put=TOKEN_PUTS, token_use=TOKEN_USES,
              pipeline=PIPELINES)
ROWS = [pytest.param(sent, expected,
                     id="%s: %s" % (table, name.encode("unicode_escape").decode()[:60]))
        for table, rows in TABLES.items() for name, sent, expected in rows]
SHORT_ROWS = [row for row in ROWS if len(row.values[0]) <= LONG]


def outcome(service, sent, expected, piece=None):
    """Send bytes; return what came in the words of the tables, at most the statuses expected."""
    at_the_end = expected.endswith("at the end")
    with Wire(service) as wire:
        wire.send(sent, piece)
        if at_the_end:
            wire.socket.shutdown(socket.SHUT_WR)
        seen = []
        for _ in expected.replace(" at the end", "").split()[:-1]:
            answer = wire.answer(head_only=sent.startswith(b"HEAD"))
            assert answer, "closed after %s" % seen
            seen.append(str(answer.status))
        if at_the_end:
            return " ".join(seen + ["closed at the end" if wire.closed() else "kept"])
        closing = dict(answer.headers).get("Connection") == "close"
        assert (wire.closed() if closing else wire.kept()), (
            "its Connection header does not tell the truth")
        return " ".join(seen + ["closed" if closing else "kept"])


@pytest.mark.parametrize("sent, expected", ROWS)
def test_bytes_sent_at_once(service, sent, expected):
    """The answer has the status, and the connection the fate, that the table says."""
    assert re.fullmatch(expected, outcome(service, sent, expected))


@pytest.mark.parametrize("sent, expected", SHORT_ROWS)
def test_bytes_sent_one_by_one(service, sent, expected):
    """A request that arrives byte by byte has the same answer as one that arrives at once."""
    assert re.fullmatch(expected, outcome(service, sent, expected, piece=1))


@pytest.mark.parametrize("sent, expected", SHORT_ROWS)
def test_split_in_any_place(sent, expected):
    """No part of a request, however split, is taken for a whole, or refused if the whole is not."""
    def read(received):
        try:
            return fake_metadata.read_request(received)[1]
        except fake_metadata.HTTPError as error:
            return "refused with %d" % error.status

    sent = sent.lstrip(b"\r\n")
    whole = read(sent)
    for at in range(1, len(sent) if isinstance(whole, str) else min(len(sent), whole or len(sent))):
        assert read(sent[:at]) in ((None, whole) if isinstance(whole, str) else (None,)), at


def test_pipelined_requests_are_answered_in_order(service):
    """A hundred requests sent at once are answered in their order."""
    with Wire(service) as wire:
        paths = ["/latest/meta-data/" + ("instance-id" if n % 3 else "nothing/%d" % n)
                 for n in range(100)]
        wire.send(b"".join(request("%s %s" % ("GET" if n % 2 else "HEAD", path))
                           for n, path in enumerate(paths)))
        for n, path in enumerate(paths):
            answer = wire.answer(head_only=not n % 2)
            assert answer.status == (200 if path.endswith("instance-id") else 404)
        assert wire.kept()


@pytest.mark.parametrize("headers, body", [
    ((CHUNKED,), b"0\r\n\r\n"), ((CHUNKED,), b"2\r\nhi\r\n0\r\n\r\n"),
    (("Content-Length: 2",), b"hi")])
def test_expectation_is_met_before_the_body(service, headers, body):
    """A client that waits for 100 Continue before its body gets it, once, then its token (s3fs)."""
    with Wire(service) as wire:
        wire.send(put(TTL, EXPECT, *headers))
        assert wire.any_answer().status == 100
        wire.send(body, piece=1)
        answer = wire.any_answer()
        assert answer.status == 200 and len(answer.body) == 56 and wire.kept()


def test_refused_expectation_says_so_at_once(service):
    """A client that waits for 100 Continue in vain gets the refusal before it has sent its body."""
    with Wire(service) as wire:
        wire.send(put(TTL, EXPECT, "Content-Length: 20000"))
        assert wire.any_answer().status == 413 and wire.closed()


# The order of headers as captured from real instances; "TTL" is the header with the seconds left.
DOCUMENT = "Content-Type Accept-Ranges Last-Modified Content-Length Date Server"
SHORT = "Content-Length Date Server Content-Type"
HEADER_ORDERS = [
    (get(), 200, DOCUMENT),
    (get("Connection: close"), 200, DOCUMENT + " Connection"),
    (get(TOKEN_HEADER + ": {token}"), 200, "TTL " + DOCUMENT),
    (get(TOKEN_HEADER + ": {token}", "Connection: close"), 200, "TTL " + DOCUMENT + " Connection"),
    (get(path=CREDENTIALS), 200, DOCUMENT),
    (get(path="/"), 200, DOCUMENT),
    (request("HEAD /latest/"), 200, DOCUMENT),
    (request("GET / HTTP/1.0"), 200, DOCUMENT + " Connection"),
    (put(TTL), 200, "TTL " + SHORT),
    (put(TTL, "Connection: close"), 200, "TTL Content-Length Date Server Connection Content-Type"),
    (request("OPTIONS /latest/"), 200, "Allow " + SHORT),
    (get(TOKEN_HEADER + ": x"), 401, SHORT),
    (get(host="evil.example"), 403, SHORT),
    (request("POST /", TOKEN_HEADER + ": {token}"), 403, "TTL " + SHORT),
    (get(path="/nothing"), 404, SHORT),
    (get(TOKEN_HEADER + ": {token}", path="/nothing"), 404, "TTL " + SHORT),
    (get(path=TOKEN_PATH), 405, "Allow " + SHORT),
    (put(), 400, SHORT),
    (b"bad\r\n\r\n", 400, "Content-Length Date Server Connection Content-Type"),
]


@pytest.mark.parametrize("sent, status, names", HEADER_ORDERS)
def test_headers_and_their_order(service, sent, status, names):
    """An answer has exactly the headers of the real service, in its order."""
    with Wire(service) as wire:
        wire.send(sent.replace(b"{token}", service.token().encode()))
        answer = wire.answer(head_only=sent.startswith(b"HEAD"))
    seen = " ".join(name for name, _ in answer.headers).replace(
        "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "TTL")
    assert (answer.status, seen) == (status, names)


@pytest.mark.parametrize("sent, status, error", [
    (b"bad\r\n\r\n", 400, "bad request"), (get(TOKEN_HEADER + ": x"), 401, "unauthorized"),
    (request("POST /"), 403, "forbidden"), (get(path="/nothing"), 404, "not found"),
    (get(path=TOKEN_PATH), 405, "method not allowed"), (request("BREW /"), 501, "not implemented"),
    (get("Content-Length: 99999"), 413, "request entity too large|content too large"),
    (get(path="/" + "x" * 9000), 414, "request-uri too long|uri too long"),
    (get(EXPECT), 417, "expectation failed"),
    (head_of(20 * KIB), 431, "request header fields too large"),
    (get(path="/ HTTP/3.0"), 505, "http version not supported")])
def test_error_bodies(service, sent, status, error):
    """An error has a JSON body: the status in lower case, and nothing of request or program."""
    with Wire(service) as wire:
        wire.send(sent)
        answer = wire.answer()
    assert answer.status == status and re.fullmatch(
        '{"error": "(%s)"}' % error, answer.body.decode())


@pytest.mark.parametrize("path", [
    "/", "/latest/meta-data/instance-id", CREDENTIALS, "/nothing", TOKEN_PATH])
def test_head_is_a_get_without_the_body(service, path):
    """HEAD has the status and the headers of GET, Content-Length included, and no body."""
    with Wire(service) as wire:
        wire.send(get(path=path))
        expected = wire.answer()
        wire.send(request("HEAD " + path))
        answer = wire.answer(head_only=True)
        assert wire.kept()
    assert answer.status == expected.status
    assert ([h for h in answer.headers if h[0] != "Date"]
            == [h for h in expected.headers if h[0] != "Date"])


@pytest.mark.parametrize("path, allowed", [
    ("/latest/meta-data/instance-id", "OPTIONS, GET, HEAD"), (CREDENTIALS, "OPTIONS, GET, HEAD"),
    ("*", "OPTIONS, GET, HEAD"), (TOKEN_PATH, "OPTIONS, PUT")])
def test_options(service, path, allowed):
    """OPTIONS names the methods of a path, and has no body."""
    with Wire(service) as wire:
        wire.send(request("OPTIONS " + path, "Origin: http://evil.example"))
        answer = wire.answer()
    assert (answer.status, dict(answer.headers)["Allow"], answer.body) == (200, allowed, b"")


def test_hosts_of_the_configuration_are_allowed(serve):
    """A Host is answered if allowed-hosts names it, and only then."""
    service = serve("[server]\nallowed-hosts = imds.test, Other.Test\n")
    for host, status in [("imds.test", 200), ("IMDS.test:80", 200), ("other.test", 200),
                         ("127.0.0.1", 200), ("imds.test.evil.example", 403), ("test", 403)]:
        assert service.get("/latest/", Host=host)[0] == status, host


REFUSED = "host imds.test is not allowed; add it to allowed-hosts in [server]"


@pytest.mark.parametrize("bodies, path, body", [
    ("json", "/latest/", json.dumps({"error": REFUSED})),
    ("ec2", "/latest/", ""),
    ("json", "/v2/credentials/BaseIAMRole", json.dumps(
        {"code": "Forbidden", "message": REFUSED, "HTTPErrorCode": 403}, separators=(",", ":"))),
    ("json", "/creds", REFUSED + "\n"),
])
def test_refused_host_is_told_what_to_do(serve, bodies, path, body):
    """A refusal names the Host and the key that would allow it; with ec2 only the log does."""
    service = serve("[server]\nerror-bodies = %s\n" % bodies)

    status, _, said = service.get(path, Host="imds.test:8000")

    assert (status, said) == (403, body)
    wait_for(lambda: REFUSED in service.log(), what="the line of the log")


@pytest.mark.parametrize("host", ["a" * 200 + ".test", "%22%3e.test", "(x).test"])
def test_refused_host_is_shown_escaped(service, host):
    """What is shown of a Host is short, and one JSON string."""
    status, _, said = service.get("/latest/", Host=host)

    assert status == 403
    assert json.loads(said)["error"].startswith("host " + host[:100])
    assert len(said) < 250


# ---------------------------------------------------------------- session tokens ---------------

def test_token_has_the_form_of_a_real_one(service):
    """A token has 56 characters of URL-safe base64, AQAEA first, == last, and is like no other."""
    tokens = {service.token() for _ in range(20)}
    assert len(tokens) == 20
    for token in tokens:
        assert re.fullmatch(r"AQAEA[A-Za-z0-9_-]{49}==", token)


def test_answers_tell_what_the_token_has_left(service):
    """The PUT tells the TTL asked for, each request with the token the seconds that remain."""
    status, headers, body = service.request("PUT", TOKEN_PATH, {TTL_HEADER: "300"})
    assert (status, headers[TTL_HEADER], headers["Content-Type"], len(body)) == (
        200, "300", "text/plain", 56)
    for path in "/latest/", "/nothing", TOKEN_PATH:
        assert service.get(path, token=body.decode())[1][TTL_HEADER] in ("299", "298", "297")


def test_token_of_ttl_0_is_dead(service):
    """A TTL of 0 brings a token that nothing accepts, as captured."""
    status, headers, body = service.request("PUT", TOKEN_PATH, {TTL_HEADER: "0"})
    assert (status, headers[TTL_HEADER]) == (200, "0")
    assert service.get("/latest/", token=body.decode())[0] == 401


def test_token_expires(service):
    """A token is accepted for its TTL and no longer."""
    token = service.token(ttl=1)
    assert service.get("/latest/", token=token)[0] == 200
    wait_for(lambda: service.get("/latest/", token=token)[0] == 401,
             what="the end of the token")


def test_expiry_is_by_the_clock_of_the_kernel():
    """A token lives for exactly its TTL on the clock that is passed in."""
    now = [1000.0]
    tokens = fake_metadata.SessionTokens(b"key", clock=lambda: now[0])
    token = tokens.issue(60)
    for seconds, left in (0, 60), (59.9, 0), (60.1, None), (21600, None), (0, 60):
        now[0] = 1000.0 + seconds
        remaining = tokens.remaining(token)
        assert (remaining if remaining is None else int(remaining + 0.01)) == left, seconds


def test_changed_token_is_refused():
    """A token with any character changed, added or removed is none."""
    tokens = fake_metadata.SessionTokens(b"key")
    token = tokens.issue(21600)
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1:] for at in range(56)]
    for wrong in changed + [token[:-1], token[:-2], token + "=", token.lower(), token.upper(),
                            "", "=" * 56]:
        assert tokens.remaining(wrong) is None, wrong
    assert fake_metadata.SessionTokens(b"other key").remaining(token) is None


def test_key_of_tokens_is_that_of_the_boot(tmp_path):
    """In a runtime directory the key stays, unless it is damaged; elsewhere each start has one."""
    key, folder = fake_metadata.session_token_key, str(tmp_path)
    first = key(folder)
    assert key(folder) == first != key() != key()
    assert stat.S_IMODE((tmp_path / "token-key").stat().st_mode) == 0o600

    (tmp_path / "token-key").write_text("0" * 63)
    assert key(folder) not in (first, b"0" * 32) and key(folder) == key(folder)


def test_key_that_cannot_be_kept():
    """A runtime directory that is not there makes a key for this process."""
    assert len(fake_metadata.session_token_key("/nowhere")) == 32


def test_token_of_more_than_six_hours():
    """A token that claims more than six hours is none, even if the seal is right."""
    now = [100]
    tokens = fake_metadata.SessionTokens(b"key", clock=lambda: now[0])
    token = tokens.issue(21600)
    assert tokens.remaining(token)

    now[0] = 90  # the clock of another boot

    assert tokens.remaining(token) is None


@pytest.mark.parametrize("uptime", [0, 2 ** 24, 2 ** 25, 2 ** 29])
def test_token_in_the_log(uptime):
    """Whatever the uptime, a token has the form of real ones and does not get into the log."""
    token = fake_metadata.SessionTokens(b"key", clock=lambda: uptime).issue(21600)

    assert re.fullmatch("AQAE[A-Za-z0-9_-]{50}==", token)
    assert fake_metadata.escaped("GET /%s HTTP/1.1" % token, 1024) == "GET /(token)== HTTP/1.1"


@pytest.mark.parametrize("second, is_kept", [(get(), True), (get(keep=False), False)])
def test_request_that_has_come_is_answered(service, second, is_kept):
    """A connection without keep-alive stays open for a request that came with the one in front."""
    with Wire(service) as wire:
        wire.send(get(keep=False) + second)

        assert [wire.answer().status for _ in range(2)] == [200, 200]
        assert wire.kept() if is_kept else wire.closed()


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_headers_of_an_unreadable_request_are_not_logged(service, end):
    """What stands behind the first line of a request is not logged, whatever ends the line."""
    lines = ["GET /unreadable HTTP/1.1", "Authorization: a-secret", "", ""]
    service.raw(end.join(lines).encode())

    wait_for(lambda: "/unreadable" in service.log(), what="the line in the log")
    assert "a-secret" not in service.log()


# ---------------------------------------------------------------- options ----------------------

REQUIRED = [  # request line, token, status
    ("GET /latest/meta-data/instance-id", None, 401), ("GET /", None, 401),
    ("GET /nothing", None, 401), ("GET " + CREDENTIALS, None, 401), ("HEAD /latest/", None, 401),
    ("POST /latest/", None, 401), ("OPTIONS /latest/", None, 401), ("GET " + TOKEN_PATH, None, 401),
    ("PUT /latest/", None, 401), ("PUT /2021-01-03/api/token", None, 401),
    ("PUT " + TOKEN_PATH, None, 200), ("GET /latest/", "bad", 401), ("GET /nothing", "bad", 401),
    ("GET /", "dead", 401),
    ("GET /latest/meta-data/instance-id", "good", 200), ("GET /nothing", "good", 404),
    ("GET /", "good", 200), ("HEAD /latest/", "good", 200), ("POST /latest/", "good", 403),
    ("OPTIONS /latest/", "good", 200), ("GET " + TOKEN_PATH, "good", 405),
    ("PUT /2021-01-03/api/token", "good", 403), ("PUT " + TOKEN_PATH, "good", 200),
    ("GET /1.0/meta-data/instance-id", "good", 200),
]


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A service with http-tokens = required."""
    with Service(tmp_path_factory.mktemp("required"),
                 "[metadata-options]\nhttp-tokens = required\n") as running:
        yield running


@pytest.mark.parametrize("line, token, status", REQUIRED)
def test_tokens_required(strict, line, token, status):
    """Where tokens are required, each path but the token's own is closed to those without one."""
    value = {None: None, "bad": "x" * 56, "good": strict.token(60), "dead": strict.token(0)}[token]
    with Wire(strict) as wire:
        wire.send(request(line, TTL, *[TOKEN_HEADER + ": " + value] if value else []))
        answer = wire.answer(head_only=line.startswith("HEAD"))
    assert answer.status == status
    assert (TTL_HEADER.lower() in [name.lower() for name, _ in answer.headers]) == (
        token == "good" or status == 200)


@pytest.mark.parametrize("line", [
    "GET /", "GET " + CREDENTIALS, "GET /nothing", "PUT " + TOKEN_PATH, "HEAD /latest/",
    "OPTIONS /latest/", "POST /", "GET " + TOKEN_PATH])
def test_endpoint_disabled(tmp_path_factory, disabled, line):
    """A service that is disabled answers everything with 403."""
    with Wire(disabled) as wire:
        wire.send(request(line, TTL))
        assert wire.answer(head_only=line.startswith("HEAD")).status == 403
        assert disabled.get("/", token="x")[0] == 403


@pytest.fixture(scope="module")
def disabled(tmp_path_factory):
    """A service with http-endpoint = disabled."""
    with Service(tmp_path_factory.mktemp("disabled"),
                 "[metadata-options]\nhttp-endpoint = disabled\n") as running:
        yield running


@pytest.mark.parametrize("hops", [1, 2, 64])
def test_hop_limit_leaves_the_connection_as_it_was(serve, hops):
    """The hop limit is for the answer to the token PUT, and for nothing else on the connection."""
    service = serve("[metadata-options]\nhttp-put-response-hop-limit = %d\n" % hops)
    with Wire(service) as wire:
        for _ in range(3):
            wire.send(put(TTL))
            assert wire.answer().status == 200 and wire.kept()


def test_containers_need_no_session_token(serve):
    """Container credentials need their authorization token, no session token even if required."""
    service = serve("[metadata-options]\nhttp-tokens = required\n"
                    "[container]\nauthorization-token = Basic c2VjcmV0\n")
    path = "/v2/credentials/BaseIAMRole"
    for headers, status in [({"Authorization": "Basic c2VjcmV0"}, 200), ({}, 401),
                            ({"Authorization": "x"}, 401), ({"Authorization": "Basic \xe9"}, 401)]:
        assert service.get(path, **headers)[0] == status
    document = json.loads(service.get(path, Authorization="Basic c2VjcmV0")[2])
    assert document["AccessKeyId"].startswith("ASIA")
