"""Whatever the bytes of a request, a configuration or credentials: no crash, no 500, no hang.

FUZZ_EXAMPLES=100000 python3 -m pytest tests/test_fuzz.py looks for longer.
What it finds becomes a row of a table.
"""
import functools
import json
import os
import re
import socket
import threading

import pytest

import fake_metadata
from conversation import SIGNER, converse
from service import CREDENTIALS, TOKEN_HEADER, TTL_HEADER, receive_all
from wire import request

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st  # noqa: E402

TOKEN_PATH = "/latest/api/token"
TOKENS = fake_metadata.SessionTokens(b"key")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
STATUSES = {400, 413, 414, 417, 431, 501, 505}  # of what is not a well-formed request

look = functools.partial(
    settings, max_examples=EXAMPLES, deadline=None, database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


# ---------------------------------------------------------------- requests ---------------------

METHODS = st.sampled_from(
    "GET HEAD PUT OPTIONS POST DELETE PATCH TRACE CONNECT get BREW respond".split())
TARGETS = st.one_of(
    st.sampled_from([
        "/", "/latest/", CREDENTIALS, TOKEN_PATH, "/latest/dynamic/instance-identity/document", "*",
        "/v2/credentials/BaseIAMRole", "/latest/user-data", "http://127.0.0.1/",
        "http://evil.example/"]),
    st.text("/.%?#abc0129-_~:@![]{}latesmd", max_size=60).map("/".__add__))
VALUES = st.one_of(
    st.sampled_from([
        "", "0", "5", "60", "-1", "chunked", "close", "keep-alive", "100-continue", "127.0.0.1",
        "evil.example", "[::1]:80", "x" * 56, "Basic x"]),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=40))
NAMES = st.one_of(
    st.sampled_from([
        "Content-Length", "Transfer-Encoding", "Connection", "Expect", "User-Agent",
        "X-Forwarded-For", "Authorization", TOKEN_HEADER, TTL_HEADER]),
    st.text("abcXYZ-_ :\t", max_size=10))
GOOD_HEADERS = st.sampled_from([
    TOKEN_HEADER + ": x", TTL_HEADER + ": 60", "Connection: close", "X-Forwarded-For: 1", "X: y"])
HOSTS = st.sampled_from(["127.0.0.1"] * 5 + ["localhost:80", "evil.example", "a b", None])
BODIES = st.one_of(
    st.sampled_from([b"", b"hello", b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"]),
    st.binary(max_size=60))


@st.composite
def any_requests(draw):
    """Draw a request with any headers."""
    header = st.tuples(NAMES, st.sampled_from([": ", ":", " : "]), VALUES).map("".join)
    headers = draw(st.lists(header, max_size=5))
    return request("%s %s" % (draw(METHODS), draw(TARGETS)), *headers,
                   body=draw(BODIES), host=draw(HOSTS))


@st.composite
def good_requests(draw):
    """Draw a request with a body that is mostly well-formed."""
    body = draw(BODIES)
    return request("%s %s" % (draw(METHODS), draw(TARGETS)),
                   *draw(st.lists(GOOD_HEADERS, unique=True)),
                   "User-Agent: " + draw(st.text("az09/ \t\xe9", max_size=20)),
                   "Content-Length: %d" % len(body), body=body)


@st.composite
def chunked_requests(draw):
    """Draw a token PUT with a chunked body."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=3))
    extension = draw(st.sampled_from([b"", b";x", b';x="y"']))
    trailers = draw(st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]))
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return request("PUT " + TOKEN_PATH, TTL_HEADER + ": 60", "Transfer-Encoding: chunked",
                   body=body + b"0\r\n" + trailers + b"\r\n")


@st.composite
def damaged_requests(draw):
    """Draw a request, or two, with a few bytes changed, cut out or put in."""
    data = draw(st.one_of(any_requests(), good_requests(), chunked_requests()))
    data += draw(st.one_of(st.just(b""), good_requests()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)):]
    return data


REQUESTS = st.one_of(st.binary(max_size=300), any_requests(), good_requests(), chunked_requests(),
                     damaged_requests())


@pytest.fixture(scope="module")
def metadata():
    """Make a service with nothing configured, of which no server is needed."""
    config = fake_metadata.load_config(environ={})
    credentials = fake_metadata.make_credentials(config, lambda words: None, None)
    return fake_metadata.MetadataService(config, credentials, SIGNER, "a box")


def read(received):
    """Return (Request, end), or the status with which the bytes are refused."""
    try:
        return fake_metadata.read_request(received)
    except fake_metadata.HTTPError as error:
        assert error.status in STATUSES
        return error.status


@look()
@given(data=REQUESTS)
@example(data=b"")
@example(data=b"\r")
def test_any_bytes_are_a_request_or_refused(metadata, data):
    """Bytes are a request, its beginning, or refused; a request is answered in form, no 500."""
    outcome = read(data)
    if not isinstance(outcome, tuple) or outcome[1] is None:
        return
    _, client = converse(metadata, TOKENS, data[:outcome[1]])
    answer = re.sub(rb"\AHTTP/1\.1 100 Continue\r\n\r\n", b"", client.sent)
    assert not answer.startswith(b"HTTP/1.1 500 ")
    check_answer(answer, outcome[0].method)


def check_answer(answer, method):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (re.match(rb"HTTP/1\.1 [2-5]\d\d [A-Z]", head)
            and not re.search(rb"(?<!\r)\n|\r(?!\n)", head))
    length = int(re.search(rb"\r\nContent-Length: (\d+)", head).group(1))
    assert len(body) == (0 if method == "HEAD" else length)


@look()
@given(data=st.one_of(good_requests(), chunked_requests(), damaged_requests()),
       at=st.integers(1, 400))
def test_the_beginning_of_a_request_is_no_request(data, at):
    """No part of a good request is refused or taken for the whole; what follows changes nothing."""
    outcome = read(data)
    assume(isinstance(outcome, tuple) and outcome[1])
    end = outcome[1]
    beginning = read(data[:min(at, end - 1)])
    assert isinstance(beginning, tuple) and beginning[1] is None
    assert read(data[:end])[1] == end


@look()
@given(line=st.binary(max_size=20000))
def test_any_bytes_can_be_logged(line):
    """What goes to the log is printable ASCII without a quote, and one line."""
    text = fake_metadata.escaped(line, 40)
    assert re.fullmatch(r"[ !#-~]*", text) and len(text.partition(" (")[0]) <= 40


@look()
@given(text=st.one_of(st.text(alphabet="0123456789abcdefx.:[]%{}-_ ", max_size=40), st.text()))
@example(text="[::ffff:169.254.169.254]:80")
def test_any_host(text):
    """A Host is an address, a name without what no name has, or refused with 400."""
    try:
        host = fake_metadata.host_in(text)
    except fake_metadata.HTTPError as error:
        assert error.status == 400
        return
    if isinstance(host, str):
        assert host == host.lower() and not set(host) & set(" /?#@[]{}\\\"<>")
    else:
        assert str(host) in (text.lower(), text.lower().rstrip(".")) or "[" in text or ":" in text


@look()
@given(fields=st.dictionaries(st.text(), st.text()))
@example(fields={"\"\\\b\0\x1f\x7f\u2028\xe9\U0001f600": "\\u0041\n"})
def test_any_text_in_json(fields):
    """Documents are JSON, whatever the tags and values in them."""
    assert json.loads(fake_metadata.pretty_json(fields)) == fields
    lists = {"none": None, "list": list(fields)}
    assert json.loads(fake_metadata.pretty_json(lists)) == lists


@look(max_examples=max(40, EXAMPLES // 4))
@given(data=st.one_of(REQUESTS, st.lists(REQUESTS, max_size=4).map(b"".join)),
       pieces=st.integers(1, 4))
def test_any_bytes_at_the_socket(service, data, pieces):
    """Whatever comes in, the service answers in form, closes, logs no error, and lives on."""
    with service.connect(timeout=5) as client:
        try:
            for at in range(0, len(data), max(1, len(data) // pieces)):
                client.sendall(data[at:at + max(1, len(data) // pieces)])
            client.shutdown(socket.SHUT_WR)
        except OSError:  # it has closed already
            pass
        answers = receive_all(client)
    assert not answers or re.match(rb"HTTP/1\.1 [1-5]\d\d ", answers)
    assert b"HTTP/1.1 500 " not in answers
    assert service.process.poll() is None


def test_nothing_strange_in_the_log(service):
    """After all that the log tells of no error of the service's own, and it still answers."""
    assert service.get("/latest/meta-data/instance-id")[0] == 200
    assert ("internal error" not in service.log() and '" 500 ' not in service.log()
            and service.stderr() == "")


# ---------------------------------------------------------------- configuration ----------------

SECTION_NAMES = sorted(fake_metadata.SETTINGS)
KEYS_OF_SECTIONS = [(section, key) for section in SECTION_NAMES
                    for key in fake_metadata.SETTINGS[section]]
KEY_NAMES = sorted({key for _, key in KEYS_OF_SECTIONS})
SECTIONS = st.one_of(st.sampled_from(SECTION_NAMES), st.text(max_size=12))
KEYS = st.one_of(st.sampled_from(KEY_NAMES), st.text(max_size=12))
WORDS = st.sampled_from("""
    +90s 5m 0s 2d 1500ms 2026-12-01T08:00:00Z terminate InService system-reboot status 503 delay
    reset no-answer expired code times 1 probability 0.2 from for /latest/* / * , ; = # %s %( ${x}
    [ ] : :: ::1 [::1]:80 10.0.0.0/16 10.0.0.1 us-east-1a us-west-2-lax-1a generate static profile
    process required disabled 64 -1 i-0123456789abcdef0 0e:ff:d5:40:fe:7d 0=x placement
    placement/region instance-id/x .. meta-data ~ ~/x /dev/null /""".split())
TEXTS = st.one_of(st.lists(WORDS, max_size=8).map(" ".join), st.text(max_size=30), st.just(""))
LINES = st.one_of(st.tuples(KEYS, st.sampled_from([" = ", "=", ":", ""]), TEXTS).map("".join),
                  st.text(max_size=20))


@st.composite
def configurations(draw):
    """Draw the text of a configuration."""
    sections = draw(st.lists(st.tuples(SECTIONS, st.lists(LINES, max_size=4)), max_size=4))
    return "".join("[%s]\n%s\n" % (section, "\n".join(lines)) for section, lines in sections)


@look()
@given(text=st.one_of(configurations().map(lambda text: text.encode("utf-8", "surrogatepass")),
                      st.binary(max_size=300)))
@example(text=b"\xef\xbb\xbf[server]\nbind = localhost\n")
@example(text=b"[credentials]\n= x\n")
@example(text=b"[metadata]\nsource = 0\n")
@example(text=b"[faults]\n\x1b = \n[]\n\n")
def test_any_configuration_is_good_or_refused(tmp_path, text):
    """A configuration makes a whole service, or is refused in a line for each mistake."""
    path = tmp_path / "fuzz.conf"
    path.write_bytes(text)
    try:
        metadata = make_metadata(path)
    except fake_metadata.ConfigError as error:
        assert all(line.isprintable() and line for line in str(error).split("\n"))
        return
    for path in metadata.paths()[:300]:
        found = metadata.find(path)
        assert isinstance(found, SERVED)


def make_metadata(path):
    """Make the service of a configuration; nothing is fetched for it."""
    config = fake_metadata.load_config([fake_metadata.ConfigFile(str(path))], environ={})
    credentials = fake_metadata.make_credentials(
        config, lambda words: None, lambda callback: None)
    return fake_metadata.MetadataService(config, credentials, SIGNER, "a box")


SERVED = fake_metadata.Document, fake_metadata.RotatingDocument, fake_metadata.SignedDocument


@look(max_examples=EXAMPLES * 2)
@given(pair=st.sampled_from(KEYS_OF_SECTIONS), name=st.sampled_from(["x", "a/b", "Name", ".."]),
       value=TEXTS)
def test_any_value_is_good_or_refused(tmp_path, pair, name, value):
    """Each key takes a value, or refuses it in one line that names the section."""
    section, key = pair[0], name if pair[1] == "*" else pair[1]
    path = tmp_path / "value.conf"
    path.write_text("[%s]\n%s = %s\n" % (section, key, " ".join(value.split())),
                    encoding="utf-8", errors="replace")
    try:
        make_metadata(path)
    except fake_metadata.ConfigError as error:
        assert "\n" not in str(error) and "[%s]" % section in str(error)


# ---------------------------------------------------------------- credentials ------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (st.lists(inner, max_size=3)
                   | st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5)
FIELDS = st.one_of(JSON, st.sampled_from([
    "ASIAGENERATION000001", "secret", "token", "2037-01-01T00:00:00Z", "a b", "a\nb",
    "2037-01-01T00:00:00+99:99", "9999-99-99T00:00:00Z", "0001-01-01T00:00:00+23:59"]))
DOCUMENTS = st.fixed_dictionaries({
    "Version": st.one_of(st.just(1), st.just(1), JSON),
    "AccessKeyId": st.one_of(st.just("ASIAGENERATION000001"), FIELDS),
    "SecretAccessKey": st.one_of(st.just("secret"), FIELDS),
    "SessionToken": FIELDS, "Expiration": FIELDS})
PROFILE_KEYS = st.sampled_from([
    "[default]", "[profile default]", "aws_access_key_id", "aws_secret_access_key",
    "aws_session_token", "aws_expiration", "credential_process", "x_security_token_expires",
    "region", "sso_session", " ", "#", "["])
PROFILE_VALUES = st.one_of(
    st.sampled_from(["ASIAGENERATION000001", "secret", "true", "'", "\"", "2037-01-01T00:00:00Z"]),
    st.text(max_size=20))


@st.composite
def outputs(draw):
    """Draw what a credential command prints: a document of JSON, or the beginning of one."""
    text = json.dumps(draw(st.one_of(DOCUMENTS, DOCUMENTS, JSON))).encode()
    return text[:draw(st.one_of(st.just(len(text)), st.integers(0, 200)))]


@st.composite
def profiles(draw):
    """Draw a shared credentials file."""
    line = st.tuples(PROFILE_KEYS, st.sampled_from(["", " = ", "=", ":"]), PROFILE_VALUES)
    lines = draw(st.lists(line, max_size=8))
    return "\n".join(map("".join, lines)).encode("utf-8", "replace")


@look()
@given(output=st.one_of(outputs(), st.binary(max_size=100)))
@example(output=b"[" * 60000)
@example(output=b'{"Version": 1, "AccessKeyId": "ASIAGENERATION000001", "SecretAccessKey": "s", '
                b'"Expiration": 1e999}')
def test_any_output_of_a_command_is_credentials_or_refused(output):
    """What a command prints is whole credentials, or refused with a word that has nothing of it."""
    check_source("process", dict(command="x", timeout=1), output, lambda *_: output)


@look()
@given(content=st.one_of(profiles(), st.binary(max_size=200)))
def test_any_credentials_file_is_credentials_or_refused(tmp_path, content):
    """A credentials file gives whole credentials, or is refused with words that hold none of it."""
    path = tmp_path / "credentials"
    path.write_bytes(content)
    check_source("profile", dict(file=str(path)), content, lambda *_: b"")


def check_source(source, changes, content, run_command):
    """Check that a source gives whole Keys, enough for documents, or raises SourceError."""
    wanted = dict(fake_metadata.default_settings("role NAME"), source=source, **changes)
    wanted["account-id"] = "123456789012"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_metadata, "run_command", run_command)
        patch.setattr(fake_metadata, "SETTLE_SECONDS", 0)
        try:
            keys = fake_metadata.SOURCES[source].fetch(wanted, os.urandom, threading.Event())
        except fake_metadata.SourceError as error:
            assert "\n" not in str(error) and "secret\"" not in str(error)
            return
    assert re.fullmatch("[A-Z0-9]{16,128}", keys.access_key_id) and keys.secret_access_key
    assert isinstance(keys.session_token, str)
    expiration = 2e9 if keys.expiration is None else keys.expiration
    made = fake_metadata.Credentials(keys, 1.9e9, expiration)
    document = json.loads(fake_metadata.credentials_document(made))
    of_container = json.loads(fake_metadata.task_document(made, "arn"))
    assert document["AccessKeyId"] == of_container["AccessKeyId"] == keys.access_key_id
