"""Credentials: rotation by a clock that the test sets, the sources, the documents to the byte."""
import errno
import json
import os
import queue
import re
import shlex
import stat
import threading

import pytest

import fake_metadata
from fake_metadata import (
    Credentials, Keys, RefreshableCredentials, RotatingDocument, SourceError,
    credentials_document, generate_keys, process_keys, profile_files, profile_keys, static_keys)
from service import wait_for

HOUR, DAY = 3600, 86400
SIX_HOURS = 6 * HOUR
KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET = "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"
TOKEN = "IQoJb3JpZ2luX2VjEXAMPLE=="
NUMBERS = iter(range(1000))
NEVER = threading.Event()  # a fetch that nobody cancels
DEFAULTS = fake_metadata.default_settings("role NAME")


def keys(expiration=None, key_id=None):
    """Return whole keys, other ones each time."""
    number = next(NUMBERS)
    return Keys(key_id or "ASIAEXAMPLE%09d" % number, "secret%d" % number, "token%d" % number,
                expiration, "")


class Source:
    """A source that gives what the test has put into it, and then new keys without expiry."""

    def __init__(self, *outcomes):
        self.outcomes, self.fetches = list(outcomes), 0

    def __call__(self, cancelled):
        self.fetches += 1
        outcome = self.outcomes.pop(0) if self.outcomes else keys()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Failing(Source):
    """A source that always fails."""

    def __call__(self, cancelled):
        self.fetches += 1
        raise SourceError("no luck")


class SlowSource:
    """A source that begins when it is asked and ends when the test says so."""

    def __init__(self):
        self.begun, self.outcomes = queue.Queue(), queue.Queue()

    def __call__(self, cancelled):
        self.begun.put(cancelled)
        outcome = self.outcomes.get(timeout=30)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Scene:
    """RefreshableCredentials with its clocks, its log and, with a thread, the queue it posts to."""

    def __init__(self, fetch, lifetime=SIX_HOURS, slow=False, settings=None):
        self.now, self.uptime, self.log, self.posted, self.fetch = (
            1796112000, 5000, [], queue.Queue(), fetch)
        settings = settings or dict(DEFAULTS, lifetime=lifetime)
        self.credentials = RefreshableCredentials(
            "BaseIAMRole", settings, fetch, self.log.append, self.posted.put if slow else None,
            files=profile_files(settings) if settings["file"] else (),
            clock=lambda: self.now, monotonic=lambda: self.uptime)
        if not slow:
            self.credentials.refresh()

    @property
    def current(self):
        return self.credentials.current()

    def pass_time(self, seconds):
        """Let time pass on both clocks, with the tick of each second, a thousand at most."""
        now, uptime, steps = self.now, self.uptime, min(int(seconds), 1000)
        for step in range(1, steps + 1):
            self.now, self.uptime = now + seconds * step / steps, uptime + seconds * step / steps
            self.credentials.refresh_if_needed()

    def finish(self, outcome):
        """End the fetch under way with an outcome; act on it as the server's thread does."""
        self.fetch.outcomes.put(outcome)
        self.posted.get(timeout=30)()


# Rotation.

def test_credentials_live_as_long_as_configured():
    """Keys without an expiry of their own live for the lifetime of the configuration."""
    scene = Scene(Source(), lifetime=HOUR)

    assert (scene.current.last_updated, scene.current.expiration) == (scene.now, scene.now + HOUR)


def test_expiry_of_the_source_counts():
    """Keys that bring an expiry live until then."""
    assert Scene(Source(keys(1796112000 + 1234))).current.expiration == 1796112000 + 1234


@pytest.mark.parametrize("lifetime, ahead", [
    (DAY, 6 * HOUR), (SIX_HOURS, 90 * 60), (HOUR, 15 * 60), (1200, 300), (600, 300), (480, 240),
    (60, 30), (1, 0.5)])
def test_new_ones_come_ahead_of_expiry(lifetime, ahead):
    """New ones come a quarter of the lifetime ahead, at least five minutes, at most half of it."""
    scene = Scene(Source(), lifetime=lifetime)
    first = scene.current

    scene.now = first.expiration - ahead - 0.01
    assert scene.current is first
    scene.now, scene.uptime = first.expiration - ahead, scene.uptime + lifetime
    assert scene.current is not first


def test_new_ones_come_without_a_request():
    """The tick of the server alone brings new credentials."""
    scene = Scene(Source())

    scene.pass_time(SIX_HOURS)

    assert scene.fetch.fetches == 2


@pytest.mark.parametrize("step", [1, HOUR, DAY, -1, -HOUR, -DAY])
def test_clock_step(step):
    """A step of the clock leaves neither expired credentials nor ones from the future."""
    scene = Scene(Source())
    scene.pass_time(10)

    scene.now += step
    scene.credentials.refresh_if_needed()

    assert scene.current.last_updated <= scene.now + 1
    assert scene.current.expiration > scene.now
    assert scene.current.expiration <= scene.now + SIX_HOURS + 1


@pytest.mark.parametrize("step", [HOUR, DAY])
def test_clock_that_steps_back_again(step):
    """A clock that was wrong for a while leaves credentials of the right time."""
    scene = Scene(Source())

    for wrong in (step, -step):
        scene.pass_time(10)
        scene.now += wrong
    scene.pass_time(2)

    assert scene.current.last_updated <= scene.now + 1
    assert scene.now < scene.current.expiration <= scene.now + SIX_HOURS


def test_clock_step_over_the_expiry_with_a_source_that_fails():
    """Expired credentials are not served, whatever made the clock jump."""
    scene = Scene(Source(keys(), SourceError("no luck")))

    scene.now += DAY

    assert scene.current is None


def test_last_good_ones_are_kept_while_the_source_fails():
    """Credentials serve until their last second while the source fails."""
    scene = Scene(Source(keys(), *[SourceError("no luck")] * 1000))
    first = scene.current

    scene.pass_time(SIX_HOURS - 1)

    assert scene.current is first
    scene.pass_time(1)
    assert scene.current is None


def test_never_a_success_that_is_expired_or_mixed():
    """With a source that fails every other time nothing expired or mixed is ever served."""
    scene, moments = Scene(Source(*[keys(), SourceError("no luck")] * 50), lifetime=HOUR), []

    for _ in range(24 * 60):
        scene.pass_time(60)
        moments.append((scene.now, scene.current))

    assert all(now < good.expiration for now, good in moments)
    assert all(good.keys.session_token[5:] == good.keys.secret_access_key[6:]
               for _, good in moments)


def test_source_that_never_gave_any():
    """Without any credentials there are none, and the log says why."""
    scene = Scene(Failing())

    assert scene.current is None
    assert "no new credentials for BaseIAMRole: no luck" in scene.log[0]


def test_back_off():
    """A source that fails is asked after 1, 2, 4 seconds and so on, once a minute at most."""
    scene, attempts = Scene(Failing()), []

    for second in range(1, 300):
        before = scene.fetch.fetches
        scene.pass_time(1)
        attempts += [second] if scene.fetch.fetches > before else []

    assert attempts == [1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_back_off_ends_with_success():
    """After a success the next failure waits a second only."""
    scene = Scene(Source(*[SourceError("no luck")] * 4))
    scene.pass_time(20)
    assert scene.current

    scene.fetch.outcomes = [SourceError("no luck"), keys()]
    scene.credentials.refresh()
    fetches = scene.fetch.fetches
    scene.now += SIX_HOURS
    scene.uptime += 1

    assert scene.current
    assert scene.fetch.fetches == fetches + 1


def test_requests_do_not_hurry_a_failing_source():
    """A thousand requests in one second are one attempt."""
    scene = Scene(Failing())

    assert [scene.current for _ in range(1000)] == [None] * 1000
    assert scene.fetch.fetches == 1


def test_refresh_waits_for_no_back_off():
    """Credentials asked for (USR1) are fetched at once, also in the back-off after a failure."""
    scene = Scene(Source(SourceError("no luck"), keys(key_id=KEY_ID)))

    scene.credentials.refresh()

    assert scene.current.keys.access_key_id == KEY_ID


def test_refresh_makes_new_ones_at_once():
    """Credentials asked for (USR1) come long before the old ones expire."""
    scene = Scene(Source())
    first = scene.current

    scene.credentials.refresh()

    assert scene.current.keys.access_key_id != first.keys.access_key_id


def test_the_same_keys_again():
    """A source that gives the same keys until their last minutes is asked rarely; they serve on."""
    same = keys(1796112000 + HOUR)
    scene = Scene(Source(*[same] * 1000))

    scene.pass_time(HOUR - 1)

    assert scene.current.keys == same
    assert scene.fetch.fetches < 30
    assert len(scene.log) == 1


def test_the_same_keys_then_new_ones():
    """New keys are taken when a source that gave the same ones for a while has them."""
    scene = Scene(Source(*[keys(1796112000 + HOUR)] + [keys(1796112000 + HOUR)] * 3))
    scene.pass_time(HOUR + 1)

    assert scene.current.expiration > scene.now


@pytest.mark.parametrize("expiration", [0, 1796112000 - DAY, 1796112000 - 1, 1796112000])
def test_keys_that_are_expired_already(expiration):
    """Keys that come expired are refused, with their expiry in the log."""
    scene = Scene(Source(keys(expiration)))

    assert scene.current is None
    expired = "the credentials from the source expired at " + fake_metadata.utc(expiration)
    assert expired in scene.log[0]


def test_expired_keys_do_not_replace_good_ones():
    """Good credentials stay when the source comes with expired ones."""
    scene = Scene(Source(keys(), keys(1)))
    first = scene.current

    scene.credentials.refresh()

    assert scene.current is first


def test_error_in_a_source_is_a_failure_of_the_source():
    """Whatever a source raises, the service goes on, and the text of the error stays unsaid."""
    scene = Scene(Source(ZeroDivisionError(SECRET)))

    assert scene.current is None
    assert "ZeroDivisionError" in scene.log[0] and SECRET not in scene.log[0]


def test_one_line_per_generation():
    """The log has role, last four of the key id and expiry of each generation, and no more."""
    scene = Scene(Source(Keys(KEY_ID, SECRET, TOKEN, None, "")))

    assert scene.log == ["new credentials for BaseIAMRole: ...MPLE, until 2026-12-01T14:00:00Z"]


def test_failure_tells_until_when_the_old_ones_serve():
    """The log tells what a failure of the source means."""
    scene = Scene(Source(keys(), SourceError("no luck")))

    scene.credentials.refresh()

    assert "no luck; the old ones are valid until 2026-12-01T14:00:00Z" in scene.log[1]


# Rotation with a source that takes time.

def test_one_fetch_at_a_time():
    """However many ask, one fetch is under way."""
    scene = Scene(SlowSource(), slow=True)

    for _ in range(100):
        assert scene.current is None
        scene.credentials.refresh_if_needed()
    scene.fetch.begun.get(timeout=30)

    assert scene.credentials.pending
    assert scene.fetch.begun.empty()
    scene.finish(keys())
    assert scene.current and not scene.credentials.pending


def test_old_ones_serve_during_a_fetch():
    """While new credentials are fetched the old ones are served, and nobody waits."""
    scene = Scene(SlowSource(), slow=True)
    scene.credentials.refresh()
    scene.finish(keys())
    first = scene.current

    scene.now += SIX_HOURS - HOUR
    scene.uptime += SIX_HOURS - HOUR
    assert scene.current is first and scene.credentials.pending
    scene.finish(keys())

    assert scene.current is not first


def test_credentials_that_expire_during_a_fetch():
    """A fetch that outlasts the old credentials leaves none, not expired ones."""
    scene = Scene(SlowSource(), slow=True)
    scene.credentials.refresh()
    scene.finish(keys())
    scene.credentials.refresh()

    scene.now += SIX_HOURS

    assert scene.current is None
    scene.finish(keys())


def test_refresh_during_a_fetch():
    """Credentials asked for (USR1) during a fetch are fetched once more when it is done."""
    scene = Scene(SlowSource(), slow=True)
    scene.credentials.refresh()
    for _ in range(3):
        scene.credentials.refresh()

    scene.finish(keys())
    assert scene.credentials.pending
    scene.finish(keys(key_id=KEY_ID))

    assert not scene.credentials.pending
    assert scene.current.keys.access_key_id == KEY_ID


def test_outcome_after_cancel():
    """What comes after the end of a rotation is not taken, nor logged."""
    scene = Scene(SlowSource(), slow=True)
    scene.credentials.refresh()

    scene.credentials.cancel()
    cancelled = scene.fetch.begun.get(timeout=30)
    scene.finish(keys())

    assert cancelled.is_set()
    assert scene.log == []


def test_no_thread_to_be_had(monkeypatch):
    """Where no thread can be started the fetch has failed, and is tried again."""
    def refuse(thread):
        raise RuntimeError("can't start new thread")
    scene = Scene(SlowSource(), slow=True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert scene.current is None
    assert "can't start new thread" in scene.log[0]

    scene.pass_time(1)
    scene.finish(keys())

    assert scene.current


def test_rotations_of_a_reload(load):
    """A reload keeps the credentials of a role whose settings are the same, and only those."""
    def rotations(text, *former):
        return fake_metadata.make_credentials(load(text), lambda words: None, None, *former)
    former = rotations("[role a]\n[role b]\n[role c]\n")

    now = rotations("[role a]\n[role b]\nlifetime = 1h\n[role d]\n", former)

    assert {role for role in now if former.get(role) is now[role]} == {
        "BaseIAMRole", "aws:ec2-instance", "a"}
    assert set(now) == {"BaseIAMRole", "aws:ec2-instance", "a", "b", "d"}


@pytest.mark.parametrize("before, after", [
    ("[credentials]\n", "[credentials]\nextended = yes\n"),
    ("[credentials]\nrole = a\n[role b]\n", "[credentials]\nrole = b\n[role a]\n")])
def test_credentials_stay_when_they_are_shown_elsewhere(load, before, after):
    """Where a role is shown is no setting of its credentials: they stay over a reload."""
    former = fake_metadata.make_credentials(load(before), lambda words: None, None)

    assert fake_metadata.make_credentials(load(after), lambda words: None, None, former) == former


# The documents.

GOOD = Credentials(Keys(KEY_ID, SECRET, TOKEN, None, ""), 1796112000.9, 1796133600.9)
DOCUMENT = """{
  "Code" : "Success",
  "LastUpdated" : "2026-12-01T08:00:00Z",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "AKIAIOSFODNN7EXAMPLE",
  "SecretAccessKey" : "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",
  "Token" : "IQoJb3JpZ2luX2VjEXAMPLE==",
  "Expiration" : "2026-12-01T14:00:00Z"
}"""


def test_document():
    """The document has the keys, order, spacing and times of the real one, no final line feed."""
    assert credentials_document(GOOD) == DOCUMENT


def test_extended_document():
    """The extended document is the same, with the account at its end."""
    assert credentials_document(GOOD, "123456789012") == (
        DOCUMENT[:-2] + ',\n  "AccountId" : "123456789012"\n}')


def test_failure_document():
    """What stands in place of credentials has Code, Message and LastUpdated, and no keys."""
    assert fake_metadata.failure_document("Failed", 'no "luck"', 1796112000) == (
        '{\n  "Code" : "Failed",\n  "Message" : "no \\"luck\\"",\n'
        '  "LastUpdated" : "2026-12-01T08:00:00Z"\n}')


def test_document_is_written_once_per_generation():
    """A document is rendered when its generation is new, not for each request."""
    scene, rendered = Scene(Source()), []
    rotating = RotatingDocument(
        scene.credentials, lambda good: rendered.append(good) or credentials_document(good))

    assert rotating.current() is rotating.current()
    scene.credentials.refresh()
    assert rotating.current().body.decode() == credentials_document(scene.current)
    assert len(rendered) == 2


def test_no_document_without_credentials():
    """Without credentials there is no document to serve."""
    assert RotatingDocument(Scene(Failing()).credentials, credentials_document).current() is None


# Sources: generate, static.

ACCOUNT = {"account-id": "123456789012"}


def test_generated_keys_have_the_form_of_real_ones():
    """Generated keys have the letters and lengths of the session credentials of a role."""
    made = generate_keys(ACCOUNT, os.urandom, NEVER)

    assert re.fullmatch("ASIA[A-Z2-7]{16}", made.access_key_id)
    assert re.fullmatch("[A-Za-z0-9/+]{40}", made.secret_access_key)
    assert re.fullmatch("IQoJb3JpZ2luX2Vj[A-Za-z0-9/+]+={0,2}", made.session_token)
    assert 800 <= len(made.session_token) <= 1500
    assert made.expiration is None


def test_generated_keys_come_from_the_randomness_given():
    """The same randomness makes the same keys, other randomness others."""
    def made(seed):
        return generate_keys(ACCOUNT, lambda count: bytes([seed]) * count, NEVER)

    assert made(1) == made(1)
    assert not set(made(1)[:3]) & set(made(2)[:3])


def test_static_keys(load):
    """The static source gives what is configured, without an expiry, so that it rolls on."""
    settings = load("[credentials]\nsource = static\naccess-key-id = %s\nsecret-access-key = %s\n"
                    "session-token = %s\n" % (KEY_ID, SECRET, TOKEN))["credentials"]

    assert static_keys(settings, os.urandom, NEVER) == Keys(KEY_ID, SECRET, TOKEN, None, "")


def test_static_keys_without_session_token(load):
    """Without a session token the token is empty."""
    settings = load("[credentials]\nsource = static\naccess-key-id = %s\nsecret-access-key = %s\n"
                    % (KEY_ID, SECRET))["credentials"]

    assert static_keys(settings, os.urandom, NEVER).session_token == ""


# Source: profile.

PAIR = "aws_access_key_id = %s\naws_secret_access_key = %s\n" % (KEY_ID, SECRET)


@pytest.fixture
def aws_file(tmp_path, load, monkeypatch):
    """Read a profile from a file of the content given: aws_file(content, profile="default")."""
    monkeypatch.setattr(fake_metadata, "SETTLE_SECONDS", 0)
    path = tmp_path / "credentials"

    def read(content, name="default", cancelled=NEVER):
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            path.chmod(0o600)
        settings = load("[credentials]\nsource = profile\nprofile = %s\nfile = %s\n"
                        % (name, path))["credentials"]
        return profile_keys(settings, os.urandom, cancelled)
    read.path = path
    return read


@pytest.mark.parametrize("content, name, session_token", [
    ("[default]\n" + PAIR, "default", ""),
    ("[default]\n" + PAIR + "aws_session_token = %s\n" % TOKEN, "default", TOKEN),
    ("[default]\n" + PAIR + "aws_security_token = %s\n" % TOKEN, "default", TOKEN),
    ("[default]\n" + PAIR + "aws_session_token =\n", "default", ""),
    ("[profile dev]\n" + PAIR, "dev", ""),
    ("[other]\naws_access_key_id = x\n[dev]\nregion = eu-west-1\n" + PAIR, "dev", ""),
    ("\ufeff[default]\n" + PAIR, "default", ""),
    (("[default]\n" + PAIR).replace("\n", "\r\n"), "default", ""),
    ("# mine\n[default]\n; keys\n" + PAIR, "default", ""),
    ("[default]\n" + PAIR.upper().replace(SECRET.upper(), SECRET), "default", ""),
    ("[default]\n" + PAIR.rstrip(), "default", ""),
    ("[default]\ns3 =\n  max_concurrent_requests = 20\n" + PAIR, "default", ""),
    ("[a b]\n" + PAIR, "a b", ""),
    ("[DEFAULT]\naws_access_key_id = x\n[default]\n" + PAIR, "default", ""),
])
def test_profile(aws_file, content, name, session_token):
    """The keys of a profile are read from a credentials file or a config file."""
    assert aws_file(content, name)[:3] == (KEY_ID, SECRET, session_token)


@pytest.mark.parametrize("key", ["aws_expiration", "x_security_token_expires"])
def test_profile_with_an_expiry(aws_file, key):
    """The expiry that tools write beside the keys counts."""
    assert aws_file(
        "[default]\n%s%s = 2026-12-01T08:00:00Z\n" % (PAIR, key)).expiration == 1796112000


@pytest.mark.parametrize("content, name, reason", [
    ("", "default", "no profile 'default'"),
    ("[default]\n", "default", "no profile 'default'"),
    ("[default]\n" + PAIR, "dev", "no profile 'dev'"),
    ("[DEFAULT]\n" + PAIR, "dev", "no profile 'dev'"),
    ("[default]\nregion = eu-west-1\n", "default", "access key ID"),
    ("[default]\naws_access_key_id = %s\n" % KEY_ID, "default", "secret access key"),
    ("[default]\naws_secret_access_key = %s\n" % SECRET, "default", "access key ID"),
    ("[default]\naws_access_key_id = %s\naws_secret_access_key =\n" % KEY_ID,
     "default", "secret access key"),
    ("[default]\naws_access_key_id = %s\naws_secret_access_key" % KEY_ID, "default", "incomplete"),
    ("[default]\naws_access_key_id = %s\naws_secr" % KEY_ID, "default", "incomplete"),
    ("[default]\naws_access_key_id = AKIAI\naws_secret_access_key = %s\n" % SECRET,
     "default", "access key ID"),
    ("[default]\naws_access_key_id = %s\naws_secret_access_key = two words\n" % KEY_ID,
     "default", "secret access key"),
    ("[default]\n" + PAIR + "aws_session_token = two words\n", "default", "session token"),
    ("[default]\n" + PAIR + "aws_expiration = soon\n", "default", "expiration"),
    ("[default\n" + PAIR, "default", "credentials file"),
    (PAIR, "default", "credentials file"),
    (b"\xff\xfe[\0d\0", "default", "credentials file"),
    (b"\0" * 100, "default", "credentials file"),
    (bytes(range(255, 100, -1)), "default", "credentials file"),
    ('{"AccessKeyId": "%s"}' % KEY_ID, "default", "credentials file"),
    (b"#" * 70000, "default", "larger than 65536 bytes"),
    ("[default]\ncredential_process =\n", "default", "cannot be run|access key ID"),
    ("[default]\ncredential_process = /nowhere/at/all\n", "default", "cannot be run"),
])
def test_bad_profile(aws_file, content, name, reason):
    """A file without whole keys is a failure of the source, which shows no secret."""
    with pytest.raises(SourceError, match=reason) as failure:
        aws_file(content, name)

    assert SECRET not in str(failure.value)


def test_profile_without_its_file(aws_file):
    """A file that is not there is a failure of the source, which says so."""
    with pytest.raises(SourceError, match=r"no profile .* in \S+ \(no such file\); "):
        aws_file(None)


def test_profile_in_a_directory(aws_file):
    """A file that cannot be read is a failure of the source that names it."""
    aws_file.path.mkdir()

    with pytest.raises(SourceError, match="credentials: Is a directory"):
        aws_file(None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_profile_in_a_file_of_somebody_else(aws_file):
    """A file that must not be read is a failure of the source that names it."""
    aws_file.path.write_text("[default]\n" + PAIR)
    aws_file.path.chmod(0)

    with pytest.raises(SourceError, match="credentials: Permission denied"):
        aws_file(None)


REMEDY = ("remedy: sudo install -o fake-metadata -m 400 %s /etc/fake-metadata.credentials; "
          "then write file = /etc/fake-metadata.credentials in /etc/fake-metadata.conf")


@pytest.fixture
def on_a_box(monkeypatch):
    """Let this process pass for the service on a box, which may read nobody's files."""
    def refuse(path, limit):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fake_metadata, "is_service_user", lambda: True)
    monkeypatch.setattr(fake_metadata, "read_file", refuse)


def test_remedy_for_a_profile_of_somebody_else(aws_file, on_a_box):
    """Where the user of the service must not read a file, the line to paste makes a copy for it."""
    words = "credentials: Permission denied for user fake-metadata; " + REMEDY % aws_file.path
    with pytest.raises(SourceError, match=re.escape(words)):
        aws_file("[default]\n" + PAIR)


def test_remedy_for_a_service_without_a_home(monkeypatch, tmp_path, on_a_box):
    """Where source = profile names no file, the one to copy is that of whoever reads the log."""
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setattr(fake_metadata, "read_profile", lambda *arguments: {})

    with pytest.raises(SourceError, match=re.escape(REMEDY % "~/.aws/credentials")):
        fake_metadata.profile_keys({"profile": "default", "file": ""}, os.urandom, None)


def test_profile_in_a_pipe(aws_file):
    """A pipe that nobody writes holds nobody up."""
    os.mkfifo(str(aws_file.path))
    outcome = queue.Queue()

    def read():
        try:
            outcome.put(aws_file(None))
        except SourceError as error:
            outcome.put(error)
    threading.Thread(target=read, daemon=True).start()

    assert isinstance(outcome.get(timeout=30), SourceError)


def test_profile_by_credential_process(aws_file):
    """The credential_process of a profile is run."""
    printed = json.dumps({"Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET})

    assert aws_file("[default]\ncredential_process = echo '%s'\n" % printed)[:2] == (KEY_ID, SECRET)


def test_keys_of_a_profile_outrank_its_credential_process(aws_file):
    """Keys that stand in a profile are taken, as AWS clients do."""
    assert aws_file("[default]\ncredential_process = false\n" + PAIR)[0] == KEY_ID


def test_file_that_is_being_written(aws_file):
    """A file that is written while it is read is a failure of the source, whole as it may look."""
    class Writing(threading.Event):
        def wait(self, seconds):
            aws_file.path.write_text("[default]\n" + PAIR + "# more\n")

    with pytest.raises(SourceError, match="credentials is being written"):
        aws_file("[default]\n" + PAIR, cancelled=Writing())


def test_file_that_is_half_written(aws_file):
    """However much of a file is there, it gives whole keys or none."""
    whole = "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n" % (KEY_ID, SECRET)
    for length in range(len(whole) - len(SECRET) - 1):
        with pytest.raises(SourceError):
            aws_file(whole[:length])


def test_file_that_others_can_read(aws_file):
    """A file that everybody can read is mentioned to the log."""
    aws_file("[default]\n" + PAIR)
    aws_file.path.chmod(0o644)

    assert "chmod" in aws_file(None).remark


@pytest.fixture
def aws_home(tmp_path, load, monkeypatch):
    """Read a profile from the two usual files: aws_home(credentials, config, profile="default")."""
    monkeypatch.setattr(fake_metadata, "SETTLE_SECONDS", 0)

    def read(credentials=None, config=None, name="default"):
        for content, file, variable in ((credentials, "credentials", "AWS_SHARED_CREDENTIALS_FILE"),
                                        (config, "config", "AWS_CONFIG_FILE")):
            monkeypatch.setenv(variable, str(tmp_path / file))
            if content is not None:
                (tmp_path / file).write_text(content)
        settings = load("[credentials]\nsource = profile\nprofile = %s\n" % name)["credentials"]
        return profile_keys(settings, os.urandom, NEVER)
    return read


@pytest.mark.parametrize("credentials, config, name", [
    ("[default]\n" + PAIR, None, "default"),
    (None, "[default]\n" + PAIR, "default"),
    (None, "[profile dev]\n" + PAIR, "dev"),
    ("[default]\n" + PAIR, "[default]\nregion = eu-west-1\n", "default"),
    ("[default]\n" + PAIR, "[default]\naws_access_key_id = x\n", "default"),
    ("[other]\n" + PAIR, "[profile dev]\n" + PAIR, "dev"),
    ("[dev]\nregion = eu-west-1\n", "[profile dev]\n" + PAIR, "dev"),
])
def test_usual_files(aws_home, credentials, config, name):
    """Without a file of its own a profile is sought in ~/.aws/credentials, then ~/.aws/config."""
    assert aws_home(credentials, config, name)[:2] == (KEY_ID, SECRET)


def test_usual_files_are_those_of_the_home_directory(tmp_path, load, monkeypatch):
    """Where no variable names them the usual files are below the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE", raising=False)
    monkeypatch.delenv("AWS_CONFIG_FILE", raising=False)
    settings = load("[credentials]\nsource = profile\n")["credentials"]

    assert profile_files(settings) == (
        str(tmp_path / ".aws/credentials"), str(tmp_path / ".aws/config"))


def change_in_place(path):
    path.write_text("# changed\n")


def replace(path):
    path.with_suffix(".new").write_text("# a file\n")
    path.with_suffix(".new").rename(path)


def touch(path):
    os.utime(str(path), (1, 1))


def make_readable(path):
    path.chmod(stat.S_IMODE(path.stat().st_mode) ^ 0o040)


@pytest.mark.parametrize("change", [change_in_place, replace, touch, make_readable, os.remove],
                         ids=lambda change: change.__name__)
def test_change_of_a_watched_file(tmp_path, load, change):
    """A file that is written, replaced, deleted or made readable is read again within a second."""
    path = tmp_path / "credentials"
    path.write_text("# a file\n")
    scene = Scene(
        Source(),
        settings=load("[credentials]\nsource = profile\nfile = %s\n" % path)["credentials"])
    scene.credentials.refresh_if_needed()
    assert scene.fetch.fetches == 1

    change(path)
    scene.credentials.refresh_if_needed()
    scene.credentials.refresh_if_needed()

    assert scene.fetch.fetches == 2


def test_watched_file_that_comes(tmp_path, load):
    """A file that was missing is read when it comes, whatever the back-off."""
    path = tmp_path / "credentials"
    scene = Scene(
        Source(SourceError("no file")),
        settings=load("[credentials]\nsource = profile\nfile = %s\n" % path)["credentials"])

    path.write_text("# a file\n")
    scene.credentials.refresh_if_needed()

    assert scene.current


# Source: process.

def printed(**changes):
    """Return what a command prints, changed; None takes a key away."""
    whole = {"Version": 1, "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "SessionToken": TOKEN,
             "Expiration": "2026-12-01T08:00:00Z"}
    return json.dumps({
        key: value for key, value in dict(whole, **changes).items() if value is not None})


@pytest.fixture
def command(load, monkeypatch):
    """Fetch from a command: command("cat file", timeout="10s")."""
    monkeypatch.setattr(fake_metadata, "COMMAND_POLL", 0.002)

    def fetch(text, timeout="10s", cancelled=None):
        config = load("[credentials]\nsource = process\ncommand = %s\ntimeout = %s\n"
                      % (text, timeout))
        return process_keys(config["credentials"], os.urandom, cancelled or NEVER)
    return fetch


@pytest.fixture
def printing(command, tmp_path):
    """Fetch from a command that prints a text: printing(text)."""
    def fetch(text):
        (tmp_path / "output").write_text(text)
        return command("cat %s/output" % tmp_path)
    return fetch


@pytest.fixture
def run(command, tmp_path):
    """Fetch from a shell script: run(script, timeout="10s")."""
    script = tmp_path / "script"

    def fetch(text, **options):
        script.write_text("cd %s\n%s" % (shlex.quote(str(tmp_path)), text))
        return command("sh %s" % script, **options)
    return fetch


def has_ended(path):
    """Tell whether the process whose id is in a file is gone, or has ended."""
    try:
        with open("/proc/%s/stat" % path.read_text().strip()) as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("output, expected", [
    (printed(), (KEY_ID, SECRET, TOKEN, 1796112000)),
    (printed(SessionToken=None), (KEY_ID, SECRET, "", 1796112000)),
    (printed(Expiration=None), (KEY_ID, SECRET, TOKEN, None)),
    (printed(Expiration=""), (KEY_ID, SECRET, TOKEN, None)),
    (printed(SessionToken=None).replace("{", '{"SessionToken": null, '),
     (KEY_ID, SECRET, "", 1796112000)),
    (printed(Expiration="2026-12-01T08:00:00.123456Z"), (KEY_ID, SECRET, TOKEN, 1796112000)),
    (printed(Expiration="2026-12-01T08:00:00+00:00"), (KEY_ID, SECRET, TOKEN, 1796112000)),
    (printed(Expiration="2026-12-01T03:00:00-0500"), (KEY_ID, SECRET, TOKEN, 1796112000)),
    (printed(AccountId="123456789012", Extra=[1]), (KEY_ID, SECRET, TOKEN, 1796112000)),
    ("\n" + printed() + "\n\n", (KEY_ID, SECRET, TOKEN, 1796112000)),
    (printed().replace(", ", ",\r\n  "), (KEY_ID, SECRET, TOKEN, 1796112000)),
])
def test_output(printing, output, expected):
    """What a command prints in the protocol of credential_process is taken."""
    assert printing(output)[:4] == expected


@pytest.mark.parametrize("output, reason", [
    ("", "did not print JSON"), ("garbage", "did not print JSON"),
    (printed()[:60], "did not print JSON"),
    (printed() + printed(), "did not print JSON"), ("[" * 30000, "did not print JSON"),
    ("[]", "Version"), ("null", "Version"), ('"text"', "Version"), ("{}", "Version"),
    (printed(Version=None), "Version"), (printed(Version=2), "Version"),
    (printed(Version="1"), "Version"),
    (printed(AccessKeyId=None), "access key ID"), (printed(AccessKeyId=""), "access key ID"),
    (printed(AccessKeyId="key"), "access key ID"), (printed(AccessKeyId=7), "access key ID"),
    (printed(SecretAccessKey=None), "secret access key"),
    (printed(SecretAccessKey=""), "secret access key"),
    (printed(SecretAccessKey=[SECRET]), "secret access key"),
    (printed(SecretAccessKey=SECRET + "\n"), "secret access key"),
    (printed(SessionToken="a b"), "session token"), (printed(SessionToken=7), "session token"),
    (printed(SessionToken=[]), "session token"), (printed(SessionToken=False), "session token"),
    (printed(Expiration="soon"), "expiration"), (printed(Expiration="2026-12-01"), "expiration"),
    (printed(Expiration="2026-12-01T08:00:00"), "expiration"),
    (printed(Expiration=1796112000), "expiration"),
    (printed(Expiration=0), "expiration"), (printed(Expiration=False), "expiration"),
    (printed(Expiration="9999-99-99T08:00:00Z"), "expiration"),
])
def test_bad_output(printing, output, reason):
    """What is not whole and right is a failure of the source, which shows no secret."""
    with pytest.raises(SourceError, match=reason) as failure:
        printing(output)

    assert SECRET not in str(failure.value)


@pytest.mark.parametrize("script, reason", [
    ("exit 3", "failed with status 3; run it by hand"),
    ("echo Profile dev was not found >&2; exit 1", "failed with status 1; run it by hand"),
    ("kill -9 $$", "was killed by signal 9"),
    ("kill -TERM $$", "was killed by signal 15"),
    ("exec 2>/dev/full; echo x >&2; exit 1", "failed with status 1"),
    ("exec cat /dev/zero", "more than 65536 bytes"),
    ("printf '\\377\\377'", "did not print JSON"),
])
def test_command_that_fails(run, script, reason):
    """A command that fails, dies or floods is a failure of the source that tells why."""
    with pytest.raises(SourceError, match=reason):
        run(script)


@pytest.mark.parametrize("complaint", [
    SECRET, KEY_ID, TOKEN, "bad secret %s!" % SECRET, '{"SecretAccessKey":"%s"}' % SECRET,
    printed(), "https://host/?token=%s" % TOKEN.replace("=", "%3D"),
    "aws_secret_access_key=" + SECRET, "SECRET:" + SECRET + ":" + TOKEN,
    "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "signature wJ%2Fal%2BXU%2FtnFE%2FMI%2BK7%2FMDE%2FNGb%2FPx"])
def test_secret_on_stderr(run, complaint):
    """No run of a secret that a command prints on stderr gets into the reason for the log."""
    with pytest.raises(SourceError) as failure:
        run("printf '%%s\\n' %s >&2; exit 1" % shlex.quote(complaint))

    for secret in (SECRET, KEY_ID, TOKEN[:-2], "eyJhbGciOiJIUzI1NiJ9", "dozjgNryP4J3jVmNHl0w5N",
                   "tnFE"):
        assert secret not in str(failure.value)


@pytest.mark.parametrize("text, reason", [
    ("/nowhere/at/all", "No such file"), ("/", "Permission denied"),
    ("/etc/passwd", "Permission denied"), ("echo 'unbalanced", "cannot be run"),
    ("''", "cannot be run"), ("aws\\", "cannot be run"),
    ("# nothing", "cannot be run")])
def test_command_that_cannot_be_started(command, text, reason):
    """A command that cannot be started is a failure of the source that tells why."""
    with pytest.raises(SourceError, match=reason):
        command(text)


def test_no_shell_runs_the_command(command, tmp_path):
    """The words of a command go to the program as they are: no shell looks at them."""
    with pytest.raises(SourceError, match="did not print JSON"):
        command("echo $(touch %s/made) ; false" % tmp_path)

    assert not (tmp_path / "made").exists()


def test_command_that_hangs(run, tmp_path):
    """A command that hangs is killed when its time is up, and those that it started too."""
    with pytest.raises(SourceError, match="timed out"):
        run("echo $$ > parent; sleep 60 & echo $! > child; wait", timeout="200ms")

    assert wait_for(lambda: has_ended(tmp_path / "parent") and has_ended(tmp_path / "child"))


def test_command_that_hangs_with_closed_pipes(run, tmp_path):
    """A command that closes its output and goes on is killed when its time is up."""
    with pytest.raises(SourceError, match="timed out"):
        run("echo $$ > parent; exec >&- 2>&-; exec sleep 60", timeout="200ms")

    assert wait_for(lambda: has_ended(tmp_path / "parent"))


def test_command_that_ignores_signals(run, tmp_path):
    """A command that ignores signals is killed all the same."""
    with pytest.raises(SourceError, match="timed out"):
        run("trap '' TERM INT HUP; echo $$ > parent; while :; do sleep 60; done", timeout="200ms")

    assert wait_for(lambda: has_ended(tmp_path / "parent"))


def test_grandchild_that_holds_the_pipe(run, tmp_path):
    """A command has ended when it has ended, even if its child holds its output; that ends too."""
    found = run("sleep 60 & echo $! > child; cat <<'END'\n%s\nEND" % printed())

    assert found.access_key_id == KEY_ID
    assert wait_for(lambda: has_ended(tmp_path / "child"))


def test_output_in_pieces(run):
    """What a command prints bit by bit is taken as a whole."""
    half = len(printed()) // 2

    assert run("printf %%s %s; sleep 0.1; printf %%s %s" % (
        shlex.quote(printed()[:half]), shlex.quote(printed()[half:]))).access_key_id == KEY_ID


def test_long_words_on_stderr_do_no_harm(run):
    """A command may talk on stderr as long as it succeeds."""
    assert run("echo Enter your code >&2; cat <<'END'\n%s\nEND" % printed()).access_key_id == KEY_ID


def test_command_has_no_input(run):
    """A command that asks for something reads the end of its input and does not wait."""
    assert run("read answer; cat; cat <<'END'\n%s\nEND" % printed()).access_key_id == KEY_ID


def test_cancel_ends_the_command(run, tmp_path):
    """A fetch that is cancelled ends at once, and its command too."""
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(SourceError, match="stopped"):
        run("echo $$ > parent; exec sleep 60", cancelled=cancelled)
    assert not (tmp_path / "parent").exists() or wait_for(lambda: has_ended(tmp_path / "parent"))


@pytest.mark.parametrize("name, value, passed", [
    ("HOME", "/home/dev", True), ("PATH", "/usr/local/bin:/usr/bin:/bin", True),
    ("AWS_PROFILE", "dev", True), ("AWS_CONFIG_FILE", "/etc/aws", True), ("LC_ALL", "C", True),
    ("HTTPS_PROXY", "http://127.0.0.1:1", True), ("SSL_CERT_FILE", "/etc/cert", True),
    ("SECRET_OF_ANOTHER", "x", False), ("NOTIFY_SOCKET", "@nowhere", False),
    ("EC2_LOCAL_IPV4", "203.0.113.9", False),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:8000/", False),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:8000/v2/credentials/x", False),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/x", False),
])
def test_environment_of_the_command(run, tmp_path, monkeypatch, name, value, passed):
    """A command gets what AWS tools need, not the way back to this service or others' business."""
    monkeypatch.setenv(name, value)

    run("env > environment; cat <<'END'\n%s\nEND" % printed())

    assert ("%s=%s" % (name, value) in (tmp_path / "environment").read_text().split("\n")) is passed


def test_command_never_asks_this_service(run, tmp_path, monkeypatch):
    """A command is told that there is no metadata service: it would ask the one that runs it."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)

    run("env > environment; cat <<'END'\n%s\nEND" % printed())

    assert "AWS_EC2_METADATA_DISABLED=true\n" in (tmp_path / "environment").read_text()
