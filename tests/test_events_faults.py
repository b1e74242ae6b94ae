"""Events and faults by a clock that the test sets; credentials of further roles and endpoints."""
import json
import re
import select
import socket
import time

import pytest

from conversation import converse
from fake_metadata import ConfigError, Fault, SessionTokens, fault_rule, utc
from service import TOKEN_HEADER, TTL_HEADER, Service, wait_for

META = "/latest/meta-data/"
CREDENTIALS = META + "iam/security-credentials/BaseIAMRole"
STATIC = ("source = static\naccess-key-id = AKIAIOSFODNN7EXAMPLE\nsecret-access-key = secret\n"
          "session-token = token\n")
TOKENS = SessionTokens(b"key")


class Answer:
    """What comes back for a request: its parts, how long it took, and whether it was reset."""

    def __init__(self, loop, client):
        self.slept, self.is_reset = loop.slept, client.is_reset
        self.reason = loop.noted[-1]  # in the log
        self.head, _, self.body = client.sent.decode().partition("\r\n\r\n")
        self.status = int(self.head.split()[1]) if self.head else None

    @property
    def document(self):
        return json.loads(self.body)


def ask(metadata, path, method="GET", **headers):
    """Have a request answered."""
    lines = ["%s %s HTTP/1.1" % (method, path), "Host: localhost"]
    lines += ["%s: %s" % (name.replace("_", "-"), value) for name, value in headers.items()]
    return Answer(*converse(metadata, TOKENS, "\r\n".join(lines + ["", ""]).encode()))


def value(metadata, path):
    """Return what is at a path, None for 404."""
    answer = ask(metadata, path)
    assert answer.status in (200, 404)
    return answer.body if answer.status == 200 else None


# Events.

SPOT, TERMINATION = META + "spot/instance-action", META + "spot/termination-time"
REBALANCE, STATE = (META + "events/recommendations/rebalance",
                    META + "autoscaling/target-lifecycle-state")
SCHEDULED, HISTORY = META + "events/maintenance/scheduled", META + "events/maintenance/history"
REBOOT = "scheduled-maintenance = +30s system-reboot +1h +2h"
AT_NINE = "2026-12-01T09:00:00Z"  # an hour after the start

MOMENTS = [  # event, path, seconds after the start, what is there
    ("spot-interruption = +90s terminate", SPOT, 0, None),
    ("spot-interruption = +90s terminate", SPOT, 89.9, None),
    ("spot-interruption = +90s terminate", SPOT, 90,
     '{"action": "terminate", "time": "2026-12-01T08:03:30Z"}'),
    ("spot-interruption = +90s terminate", SPOT, 86400,
     '{"action": "terminate", "time": "2026-12-01T08:03:30Z"}'),
    ("spot-interruption = +90s terminate", TERMINATION, 89, None),
    ("spot-interruption = +90s terminate", TERMINATION, 90, "2026-12-01T08:03:30Z"),
    ("spot-interruption = +90s terminate", TERMINATION, 86400, "2026-12-01T08:03:30Z"),
    ("spot-interruption = +90s stop", SPOT, 90,
     '{"action": "stop", "time": "2026-12-01T08:03:30Z"}'),
    ("spot-interruption = +90s stop", TERMINATION, 90, None),
    ("spot-interruption = +90s hibernate", SPOT, 90,
     '{"action": "hibernate", "time": "2026-12-01T08:01:30Z"}'),
    ("spot-interruption = +90s hibernate", TERMINATION, 90, None),
    ("spot-interruption = %s stop" % AT_NINE, SPOT, 3599, None),
    ("spot-interruption = %s stop" % AT_NINE, SPOT, 3600,
     '{"action": "stop", "time": "2026-12-01T09:02:00Z"}'),
    ("spot-interruption = 2026-12-01T07:00:00Z stop", SPOT, 0,
     '{"action": "stop", "time": "2026-12-01T07:02:00Z"}'),
    ("rebalance-recommendation = +60s", REBALANCE, 59, None),
    ("rebalance-recommendation = +60s", REBALANCE, 60, '{"noticeTime": "2026-12-01T08:01:00Z"}'),
    ("rebalance-recommendation = +60s", REBALANCE, 86400, '{"noticeTime": "2026-12-01T08:01:00Z"}'),
    ("rebalance-recommendation = %s" % AT_NINE, REBALANCE, 3600,
     '{"noticeTime": "2026-12-01T09:00:00Z"}'),
    ("target-lifecycle-state = InService", STATE, 0, "InService"),
    ("target-lifecycle-state = InService, +120s Terminated", STATE, 119, "InService"),
    ("target-lifecycle-state = InService, +120s Terminated", STATE, 120, "Terminated"),
    ("target-lifecycle-state = InService, +120s Terminated", STATE, 86400, "Terminated"),
    ("target-lifecycle-state = +60s Warmed:Stopped", STATE, 59, None),
    ("target-lifecycle-state = +60s Warmed:Stopped", STATE, 60, "Warmed:Stopped"),
    ("target-lifecycle-state = +60s Standby, +90s InService, +120s Detached", STATE, 100,
     "InService"),
    ("target-lifecycle-state = +120s Terminated, +60s Standby", STATE, 60, "Standby"),
    ("target-lifecycle-state = +120s Terminated, +60s Standby", STATE, 120, "Terminated"),
    ("target-lifecycle-state = +120s Terminated, InService", STATE, 120, "Terminated"),
    ("target-lifecycle-state = +60s Terminated, +60s InService", STATE, 60,
     "InService"),  # the last word
    (REBOOT, SCHEDULED, 29, "[]"),
    (REBOOT, HISTORY, 30, "[]"),
    (REBOOT, HISTORY, 7199, "[]"),
    (REBOOT, SCHEDULED, 7200, "[]"),
]


@pytest.mark.parametrize("event, path, seconds, expected", MOMENTS)
def test_event_at_a_moment(make_metadata, clock, event, path, seconds, expected):
    """Before its time an event is not there; from then on it is, with times that do not move."""
    metadata = make_metadata("[events]\n%s\n" % event)

    clock.now += seconds

    assert value(metadata, path) == expected


def test_event_that_is_polled(make_metadata, clock):
    """A notice that is polled every five seconds appears at its time and stays as it is."""
    metadata, seen = make_metadata(
        "[events]\nspot-interruption = +90s terminate\nrebalance-recommendation = +60s\n"), []

    for _ in range(0, 600, 5):
        seen.append((value(metadata, SPOT), value(metadata, REBALANCE)))
        clock.now += 5

    assert [index * 5 for index in range(120) if not seen[index][0]] == list(range(0, 90, 5))
    assert len({notice for notice, _ in seen}) == len({notice for _, notice in seen}) == 2


def test_scheduled_maintenance_to_the_byte(make_metadata, clock):
    """A maintenance event has the keys, order, spacing and dates of captures."""
    metadata = make_metadata("[events]\nscheduled-maintenance = +30s system-reboot %s "
                             "2026-12-01T10:00:00Z\n" % AT_NINE)

    clock.now += 30

    assert re.fullmatch(r"""\[ {
  "NotBefore" : "1 Dec 2026 09:00:00 GMT",
  "Code" : "system-reboot",
  "Description" : "scheduled reboot",
  "EventId" : "instance-event-0[0-9a-f]{16}",
  "NotAfter" : "1 Dec 2026 10:00:00 GMT",
  "State" : "active"
} \]""", value(metadata, SCHEDULED))


@pytest.mark.parametrize("end, seconds, state, description", [
    ("", 7200, "completed", "[Completed] scheduled reboot"),
    (" completed +90s", 90, "completed", "[Completed] scheduled reboot"),
    (" canceled +90s", 90, "canceled", "[Canceled] scheduled reboot")])
def test_maintenance_that_is_over(make_metadata, clock, end, seconds, state, description):
    """A maintenance event moves to the history, completed at its end or as it is configured."""
    metadata = make_metadata("[events]\n%s%s\n" % (REBOOT, end))
    clock.now += seconds - 1
    scheduled = json.loads(value(metadata, SCHEDULED))

    clock.now += 1

    assert json.loads(value(metadata, SCHEDULED)) == []
    assert json.loads(value(metadata, HISTORY)) == [
        dict(scheduled[0], State=state, Description=description)]


def test_several_maintenance_events(make_metadata, clock):
    """Several maintenance events go their ways, each with an id of its own that stays."""
    metadata = make_metadata(
        "[events]\nscheduled-maintenance = +30s system-reboot +1h +2h canceled +60s,\n"
        "  +30s instance-stop +3h +4h\n")

    clock.now += 30
    both = json.loads(value(metadata, SCHEDULED))
    clock.now += 30

    assert [event["Code"] for event in both] == ["system-reboot", "instance-stop"]
    assert len({event["EventId"] for event in both}) == 2
    assert json.loads(value(metadata, SCHEDULED)) == both[1:]
    assert json.loads(value(metadata, HISTORY))[0]["EventId"] == both[0]["EventId"]


def test_events_at_once(make_metadata, clock):
    """Several kinds of events are there together."""
    metadata = make_metadata(
        "[events]\nspot-interruption = +5s stop\nrebalance-recommendation = +5s\n%s\n"
        "target-lifecycle-state = +5s Terminated\n" % REBOOT)

    clock.now += 3600

    assert (value(metadata, SPOT) and value(metadata, REBALANCE)
            and value(metadata, STATE) == "Terminated")
    assert len(json.loads(value(metadata, SCHEDULED))) == 1


@pytest.mark.parametrize("event, directory, before, after", [
    ("spot-interruption = +90s terminate", META + "spot", None,
     "instance-action\ntermination-time"),
    ("spot-interruption = +90s stop", META + "spot", None, "instance-action"),
    ("rebalance-recommendation = +90s", META + "events", "maintenance/",
     "maintenance/\nrecommendations/"),
    ("rebalance-recommendation = +90s", META + "events/recommendations", None, "rebalance"),
    ("target-lifecycle-state = +90s Standby", META + "autoscaling", None, "target-lifecycle-state"),
    ("scheduled-maintenance = +90s system-reboot +1h +2h", META + "events/maintenance",
     "history\nscheduled", "history\nscheduled")])
def test_listings_follow_events(make_metadata, clock, event, directory, before, after):
    """What an event brings is listed from its time on, and not before."""
    metadata = make_metadata("[events]\n%s\n" % event)

    assert value(metadata, directory) == before
    clock.now += 90
    assert value(metadata, directory) == after


def test_listing_of_meta_data_follows_events(make_metadata, clock):
    """The directory of a spot notice is listed in meta-data/ from the time of the notice on."""
    metadata = make_metadata("[events]\nspot-interruption = +90s stop\n")

    assert "spot/" not in value(metadata, META).split("\n")
    clock.now += 90
    assert "spot/" in value(metadata, META).split("\n")


def test_times_count_from_the_first_reading(make_metadata, clock):
    """+90s is ninety seconds after its text was first read, by a start or by a reload."""
    clock.now += 1000

    metadata = make_metadata("[events]\nrebalance-recommendation = +90s\n")
    clock.now += 90

    assert value(metadata, REBALANCE) == '{"noticeTime": "%s"}' % utc(clock.now)


@pytest.mark.parametrize("step", [3600, 86400])
def test_clock_that_is_set_back_before_an_event(make_metadata, clock, step):
    """When the clock is set back before the time of an event, the event is not there yet."""
    metadata = make_metadata("[events]\nrebalance-recommendation = +60s\n")
    clock.now += 60
    assert value(metadata, REBALANCE)

    clock.now -= step

    assert value(metadata, REBALANCE) is None


def test_no_events_by_default(make_metadata, clock):
    """Nothing happens to an instance unless the configuration says so."""
    metadata = make_metadata()

    clock.now += 10 * 86400

    assert [value(metadata, path) for path in (SPOT, TERMINATION, REBALANCE, STATE)] == [None] * 4
    assert (value(metadata, SCHEDULED), value(metadata, HISTORY)) == ("[]", "[]")


def test_own_value_outlasts_an_event(make_metadata, clock):
    """A path that the user took away does not come back with an event."""
    metadata = make_metadata("[metadata]\nspot =\n[events]\nspot-interruption = +90s terminate\n")

    clock.now += 90

    assert value(metadata, META + "spot") is None


CHANGES = {  # event -> [(seconds after the start, what the log says)]
    "spot-interruption = +90s terminate": [(90, "terminate at 2026-12-01T08:03:30Z")],
    "spot-interruption = +90s hibernate": [(90, "hibernate at 2026-12-01T08:01:30Z")],
    "spot-interruption = +0s stop %s" % AT_NINE: [(0, "stop at " + AT_NINE)],
    "spot-interruption = 2026-12-01T07:00:00Z stop": [(0, "stop at 2026-12-01T07:02:00Z")],
    "rebalance-recommendation = +60s": [(60, "noticeTime 2026-12-01T08:01:00Z")],
    "rebalance-recommendation = +60s %s" % AT_NINE: [(60, "noticeTime " + AT_NINE)],
    "target-lifecycle-state = InService, +120s Terminated": [
        (0, "InService"), (120, "Terminated")],
    REBOOT: [(30, "system-reboot at " + AT_NINE), (7200, "system-reboot completed")],
    REBOOT + " canceled +60s": [
        (30, "system-reboot at " + AT_NINE), (60, "system-reboot canceled")],
    REBOOT + ", +40s instance-stop +1h": [
        (30, "system-reboot at " + AT_NINE), (40, "instance-stop at " + AT_NINE),
        (7200, "system-reboot completed")],
}


@pytest.mark.parametrize("event", CHANGES)
def test_news_of_an_event(make_metadata, clock, event):
    """What an event changes is told once, when it has come."""
    metadata, told = make_metadata("[events]\n%s\n" % event), []
    start, name = clock.now, event.partition(" ")[0]

    for seconds in range(0, 7300, 10):
        clock.now = start + seconds
        told += [(seconds, words) for words in metadata.news()]

    assert told == [(seconds, "event %s: %s" % (name, words)) for seconds, words in CHANGES[event]]


def test_news_in_their_order(make_metadata, clock):
    """Changes that are told together stand in the order in which they came."""
    metadata = make_metadata("[events]\nspot-interruption = +90s stop\nrebalance-recommendation ="
                             " +60s\ntarget-lifecycle-state = +70s Standby\n")
    clock.now += 600

    assert [words.split()[1] for words in metadata.news()] == [
        "rebalance-recommendation:", "target-lifecycle-state:", "spot-interruption:"]


# What goes on over a reload.

def test_event_goes_on_over_a_reload(make_metadata, clock):
    """An event whose text is the same keeps its times over a reload, and is not told again."""
    text = "[events]\nspot-interruption = +90s stop\n"
    first = make_metadata(text)
    clock.now += 60
    second = make_metadata(text + "rebalance-recommendation = +60s\n", former=first)
    clock.now += 30
    notice = '{"action": "stop", "time": "2026-12-01T08:03:30Z"}'
    assert value(second, SPOT) == notice
    assert second.news() == ["event spot-interruption: stop at 2026-12-01T08:03:30Z"]
    clock.now += 30

    third = make_metadata(text, former=second)

    assert value(third, SPOT) == notice
    assert value(second, REBALANCE) == '{"noticeTime": "2026-12-01T08:02:00Z"}'
    assert third.news() == []


def test_id_of_an_event_stays_over_a_reload(make_metadata, clock):
    """A maintenance event that has not changed is the same one after a reload."""
    text = "[events]\n%s\n" % REBOOT
    metadata = make_metadata(text)
    clock.now += 30
    before = value(metadata, SCHEDULED)

    assert value(make_metadata(text, former=metadata), SCHEDULED) == before != "[]"


@pytest.mark.parametrize("between", [
    "", "[events]\nspot-interruption =\n", "[events]\nspot-interruption = +91s stop\n"],
    ids=["gone", "empty", "another text"])
def test_event_begins_anew(make_metadata, clock, between):
    """An event that was changed, or away for a while, begins anew."""
    text = "[events]\nspot-interruption = +90s stop\n"
    metadata = make_metadata(text)
    clock.now += 90
    assert value(metadata, SPOT) and metadata.news()

    metadata = make_metadata(text, former=make_metadata(between, former=metadata))

    assert value(metadata, SPOT) is None
    clock.now += 90
    assert value(metadata, SPOT) == '{"action": "stop", "time": "2026-12-01T08:05:00Z"}'
    assert len(metadata.news()) == 1


def test_window_goes_on_over_a_reload(make_metadata, clock):
    """The time of a fault counts from when its text was first read."""
    text = "[faults]\nx = /latest/* status 503 from +30s for 20s\n"
    metadata, statuses = make_metadata(text), []

    for _ in range(6):
        statuses.append(ask(metadata, META + "mac").status)
        clock.now += 10
        metadata = make_metadata(text, former=metadata)

    assert statuses == [200, 200, 200, 503, 503, 200]


def test_times_go_on_over_a_reload(make_metadata):
    """What a fault has struck already counts after a reload, unless its text has changed."""
    text = "[faults]\nx = /latest/* status 503 times %d\n"
    first = make_metadata(text % 2)
    assert ask(first, META + "mac").status == 503

    same = make_metadata(text % 2, former=first)
    changed = make_metadata(text % 3, former=first)

    assert [ask(same, META + "mac").status for _ in range(2)] == [503, 200]
    assert [ask(changed, META + "mac").status for _ in range(4)] == [503, 503, 503, 200]


def test_chances_go_on_over_a_reload(make_metadata):
    """A fault with a probability goes on with its row of chances."""
    text = "[faults]\nx = /latest/* status 503 probability 0.5\n"
    whole, parts = make_metadata(text), make_metadata(text)
    expected = [ask(whole, META + "mac").status for _ in range(40)]

    statuses = []
    for _ in range(4):
        statuses += [ask(parts, META + "mac").status for _ in range(10)]
        parts = make_metadata(text, former=parts)

    assert statuses == expected


# Faults: which requests.

@pytest.mark.parametrize("pattern, path, suffers", [
    ("/latest/*", "/latest/meta-data/mac", True),
    ("/latest/*", "/latest/api/token", True),
    ("/latest/*", "/v2/credentials/x", False),
    ("/*", "/", True),
    ("*", "/", None),
    ("/latest/meta-data/mac", "/latest/meta-data/mac", True),
    ("/latest/meta-data/mac", "/latest/meta-data/macs", False),
    ("/latest/meta-data/mac", "/latest/meta-data/mac/", True),
    ("/latest/meta-data/mac", "/2021-03-23/meta-data//mac?x=1", True),
    ("/latest/meta-data/m.c", "/latest/meta-data/mac", False),
    ("/latest/meta-data/*-id", "/latest/meta-data/ami-id", True),
    ("/latest/meta-data/*-id", "/latest/meta-data/network/interfaces/x/vpc-id", True),
    ("/latest/meta-data/*-id", "/latest/meta-data/ami-ids", False),
    ("/latest/meta-data/iam/security-credentials/",
     "/latest/meta-data/iam/security-credentials/", True),
    ("/latest/meta-data/iam/security-credentials/",
     "/latest/meta-data/iam/security-credentials", True),
    ("/latest/meta-data/iam/*", "/latest/meta-data/iam/security-credentials/BaseIAMRole", True),
    ("/2021-03-23/meta-data/mac", "/latest/meta-data/mac", True),
    ("/no/such/path", "/no/such/path", True),
])
def test_pattern(make_metadata, check, pattern, path, suffers):
    """A pattern is a path, in whatever form it is asked for, in which * stands for anything."""
    if suffers is None:
        assert check("[faults]\nx = %s status 503\n" % pattern)[0] == 1
        return
    metadata = make_metadata("[faults]\nx = %s status 503\n" % pattern)

    assert (ask(metadata, path).status == 503) is suffers


@pytest.mark.parametrize("window, hits", [
    ("", [-9, 0, 1, 29, 30, 49, 50, 99999]),
    ("from +30s", [30, 49, 50, 99999]),
    ("for 30s", [0, 1, 29]),
    ("from +30s for 20s", [30, 49]),
    ("for 20s from +30s", [30, 49]),
    ("from 2026-12-01T08:00:30Z for 20s", [30, 49]),
    ("from +0s for 0s", []),
    ("for 2s every 10s", [0, 1, 30, 50]),
    ("every 49s for 2s", [0, 1, 49, 50]),
    ("every 30s for 20s from +30s", [30, 49, 99999]),
    ("every 500ms for 499ms", [0, 1, 29, 30, 49, 50, 99999]),
])
def test_window(window, hits):
    """A fault strikes from its time on, for as long as it says, by default always."""
    made = Fault("x", fault_rule("/* status 503 " + window), 1796112000)

    assert [second for second in (-9, 0, 1, 29, 30, 49, 50, 99999)
            if made.matches("/x", 1796112000 + second, True, None)] == hits


def test_times():
    """A fault with a number of times strikes so often and then no more, other paths not counted."""
    made = Fault("x", fault_rule("/x status 503 times 2"), 0)

    assert [made.matches(path, 1, True, None) for path in ("/y", "/x", "/y", "/x", "/x", "/x")] == [
        False, True, False, True, False, False]


def test_times_count_in_the_window_only():
    """Requests before the window do not use a fault up."""
    made = Fault("x", fault_rule("/x status 503 from +30s times 1"), 0)

    assert [made.matches("/x", second, True, None) for second in (0, 29, 30, 31)] == [
        False, False, True, False]


def test_probability():
    """A fault with a probability strikes so often, the same requests in each run."""
    def run(name):
        made = Fault(name, fault_rule("/* status 503 probability 0.2"), 0)
        return [made.matches("/x", 1, True, None) for _ in range(1000)]

    assert 150 < sum(run("slow")) < 250
    assert run("slow") == run("slow") != run("other")


def test_probability_of_one():
    """A fault with probability 1 always strikes."""
    made = Fault("x", fault_rule("/* status 503 probability 1"), 0)

    assert all(made.matches("/x", 1, True, None) for _ in range(100))


def test_times_count_what_was_struck_by_chance():
    """With a probability the number of times counts the requests that suffer."""
    made = Fault("x", fault_rule("/* status 503 probability 0.5 times 3"), 0)

    assert sum(made.matches("/x", 1, True, None) for _ in range(1000)) == 3


# Faults: what happens.

@pytest.mark.parametrize("status, body", [
    (500, '{"error": "internal server error"}'), (503, '{"error": "service unavailable"}'),
    (429, '{"error": "too many requests"}'), (404, '{"error": "not found"}'),
    (400, '{"error": "bad request"}'), (403, '{"error": "forbidden"}'),
    (599, '{"error": "unknown"}')])
def test_status(make_metadata, status, body):
    """A fault answers with its status, in the form of other errors."""
    answer = ask(make_metadata("[faults]\nx = /latest/* status %d\n" % status), META + "mac")

    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize("method, path", [
    ("GET", META + "mac"), ("HEAD", META + "mac"), ("OPTIONS", META + "mac"),
    ("PUT", "/latest/api/token"), ("GET", "/no/such/path"), ("GET", "/v2/credentials/BaseIAMRole"),
    ("GET", "/latest/user-data"), ("GET", "/")])
def test_status_of_every_request(make_metadata, method, path):
    """A fault meets every method and every path, those that are not there too."""
    assert ask(make_metadata("[faults]\nx = /* status 503\n"), path, method).status == 503


def test_status_comes_before_the_session_token(make_metadata):
    """A fault strikes before a session token is looked at, as an outage does."""
    metadata = make_metadata(
        "[metadata-options]\nhttp-tokens = required\n[faults]\nx = /latest/* status 503\n")

    assert ask(metadata, META + "mac").status == 503


def test_delay(make_metadata):
    """A delayed request is answered after its delay."""
    answer = ask(make_metadata("[faults]\nx = /latest/* delay 1500ms\n"), META + "mac")

    assert (answer.slept, answer.status) == ([1.5], 200)


def test_delay_and_status(make_metadata):
    """A fault can delay a request and then refuse it; delays of several faults add up."""
    text = "[faults]\nx = /latest/* delay 1s status 503\ny = /latest/* delay 2s\n"
    answer = ask(make_metadata(text), META + "mac")

    assert (answer.slept, answer.status) == ([3], 503)


def test_delayed_request_is_counted_once(make_metadata):
    """A delayed request uses up one time of a fault."""
    metadata = make_metadata("[faults]\nx = /latest/* delay 1s times 2\n")

    assert [ask(metadata, META + "mac").slept for _ in range(3)] == [[1], [1], []]


@pytest.mark.parametrize("action, is_reset", [("reset", True), ("no-answer", False)])
def test_dropped(make_metadata, action, is_reset):
    """A request can be dropped, by a reset or without a word."""
    answer = ask(make_metadata("[faults]\nx = /latest/* %s\n" % action), META + "mac")

    assert (answer.status, answer.is_reset) == (None, is_reset)


@pytest.mark.parametrize("line, expected", [
    ("status 503 reset", "reset"), ("reset no-answer", "reset"), ("refuse-token status 500", 500)])
def test_several_actions_of_one_fault(make_metadata, line, expected):
    """Of several actions in one line that exclude each other the first of FAULT_ACTIONS counts."""
    answer = ask(make_metadata("[faults]\nx = /* %s\n" % line), META + "mac",
                 X_aws_ec2_metadata_token=TOKENS.issue(60))

    assert ("reset" if answer.is_reset else answer.status) == expected


def test_fault_is_over_with_its_request(make_metadata):
    """A fault that struck one request on a connection leaves the next one alone."""
    metadata = make_metadata("[faults]\nx = /* code Failed times 1\n")
    request = ("GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % CREDENTIALS).encode()

    _, client = converse(metadata, TOKENS, request * 2)

    assert re.findall(rb'"Code" : "(\w+)"', client.sent) == [b"Failed", b"Success"]


def test_first_status_wins(make_metadata):
    """Of two faults that refuse a request the first one in the file does."""
    metadata = make_metadata(
        "[faults]\nb = /latest/* status 503\na = /latest/meta-data/* status 500\n")

    assert ask(metadata, META + "mac").status == 503


@pytest.mark.parametrize("path", [
    CREDENTIALS, META + "identity-credentials/ec2/security-credentials/ec2-instance",
    META + "iam/security-credentials-extended/BaseIAMRole"])
def test_code(make_metadata, path):
    """Credentials can be replaced by a document with another Code, which has no keys."""
    metadata = make_metadata(
        "[credentials]\nextended = yes\n"
        "[faults]\nx = /latest/* code AssumeRoleUnauthorizedAccess\n")
    answer = ask(metadata, path)

    assert answer.status == 200
    assert sorted(answer.document) == ["Code", "LastUpdated", "Message"]
    assert answer.document["Code"] == "AssumeRoleUnauthorizedAccess"
    assert answer.document["LastUpdated"] == "2026-12-01T08:00:00Z"


def test_code_of_iam_info(make_metadata):
    """iam/info can have another Code, as it has without an instance profile."""
    metadata = make_metadata(
        "[faults]\nx = /latest/meta-data/iam/info code InstanceProfileNotFound\n")

    assert ask(metadata, META + "iam/info").document["Code"] == "InstanceProfileNotFound"


@pytest.mark.parametrize("path", [
    META + "instance-id", META + "iam/security-credentials", META + "placement/region",
    "/latest/dynamic/instance-identity/document"])
def test_code_is_for_credentials(make_metadata, path):
    """Another Code for everything leaves what has no Code as it is."""
    assert (value(make_metadata("[faults]\nx = /latest/* code Failed\n"), path)
            == value(make_metadata(), path))


def test_code_of_container_credentials(make_metadata):
    """At the container endpoint another Code is a refusal in its form."""
    answer = ask(make_metadata("[faults]\nx = /v2/* code AccessDenied\n"),
                 "/v2/credentials/BaseIAMRole")

    assert answer.status == 400
    assert list(answer.document) == ERROR_KEYS
    assert answer.document["code"] == "AccessDenied"


@pytest.mark.parametrize("path", [CREDENTIALS, "/v2/credentials/BaseIAMRole"])
def test_expired(make_metadata, clock, path):
    """Credentials can come expired: the same keys with times in the past."""
    whole = ask(make_metadata("[credentials]\n%s" % STATIC), path).document

    expired = ask(
        make_metadata("[credentials]\n%s[faults]\nx = /* expired\n" % STATIC), path).document

    assert expired["Expiration"] < utc(clock.now)
    assert [expired[key] for key in ("AccessKeyId", "SecretAccessKey", "Token")] == [
        whole[key] for key in ("AccessKeyId", "SecretAccessKey", "Token")]


def test_expired_leaves_other_paths(make_metadata):
    """Expired credentials are the only thing that is expired."""
    assert (value(make_metadata("[faults]\nx = /* expired\n"), META + "iam/info")
            == value(make_metadata(), META + "iam/info"))


def test_expired_counts_credentials_only(make_metadata, clock):
    """A request for anything else does not use up a time of expired credentials."""
    metadata = make_metadata("[faults]\nx = /* expired times 1\n")
    for path in ("iam/info", "mac", "no/such/path", "iam/security-credentials"):
        ask(metadata, META + path)

    first, second = ask(metadata, CREDENTIALS).document, ask(metadata, CREDENTIALS).document

    assert first["Expiration"] == utc(clock.now - 3600) != second["Expiration"]


def test_expired_with_another_code(make_metadata):
    """A fault that has a Code for documents and an expiry for credentials strikes both."""
    metadata = make_metadata("[faults]\nx = /* expired code Foo\n")

    assert (ask(metadata, META + "iam/info").document["Code"]
            == ask(metadata, CREDENTIALS).document["Code"] == "Foo")


def test_expired_for_a_while(make_metadata, clock):
    """Credentials are good again when the fault is over."""
    metadata = make_metadata("[credentials]\n%s[faults]\nx = /* expired for 5m\n" % STATIC)
    expired = ask(metadata, CREDENTIALS).body

    clock.now += 300

    assert ask(metadata, CREDENTIALS).body != expired


def test_refused_token(make_metadata):
    """A good session token can be refused; requests without one are answered."""
    metadata = make_metadata("[faults]\nx = /latest/* refuse-token\n")

    assert ask(metadata, META + "mac", X_aws_ec2_metadata_token=TOKENS.issue(60)).status == 401
    assert ask(metadata, META + "mac").status == 200


def test_token_refused_once(make_metadata):
    """A token refused once is refused to the first request with one, whatever came before."""
    metadata = make_metadata("[faults]\nx = /latest/* refuse-token times 1\n")
    assert ask(
        metadata, "/latest/api/token", "PUT", **{TTL_HEADER.replace("-", "_"): 60}).status == 200
    assert ask(metadata, META + "mac").status == 200

    answers = [ask(metadata, META + "mac", X_aws_ec2_metadata_token=TOKENS.issue(60)).status
               for _ in range(3)]

    assert answers == [401, 200, 200]


@pytest.mark.parametrize("what", ["expired", "code Failed"])
def test_fault_of_credentials_waits_for_credentials(make_metadata, what):
    """A fault that only credentials can show is not used up by the requests before them."""
    metadata = make_metadata("[faults]\nx = /latest/* %s times 1\n" % what)
    assert ask(metadata, META + "mac").status == 200

    first, second = (ask(metadata, CREDENTIALS).document for _ in range(2))

    assert first != second


@pytest.mark.parametrize("action, length", [("empty", 0), ("truncate 40", 40), ("truncate 0", 0),
                                            ("truncate 99999", 99999), ("truncate 9 empty", 0)])
@pytest.mark.parametrize("method, path", [
    ("GET", CREDENTIALS), ("GET", META), ("GET", META + "iam/info"), ("GET", "/latest/user-data"),
    ("GET", "/v2/credentials/BaseIAMRole"), ("GET", "/"), ("HEAD", META), ("OPTIONS", META)])
def test_shortened(make_metadata, clock, action, length, method, path):
    """A body can be cut off, or left out: all else is as if it were whole."""
    metadata = make_metadata("[credentials]\n%s[user-data]\ntext = %s\n[faults]\nx = /* %s from +1s"
                             % (STATIC, "x" * 50, action))
    whole = ask(metadata, path, method)
    clock.now += 1

    short = ask(metadata, path, method)

    size = int(re.search(r"Content-Length: (\d+)", whole.head).group(1))
    cut = whole.head.replace("Content-Length: %d\r" % size,
                             "Content-Length: %d\r" % min(size, length))
    assert (short.head, short.body) == (cut, whole.body[:length])


def test_shortened_session_token(make_metadata):
    """The answer to a PUT of a session token can be cut off too."""
    ttl = {TTL_HEADER.replace("-", "_"): 60}
    metadata = make_metadata("[faults]\nx = /latest/api/token truncate 4\n")

    answer = ask(metadata, "/latest/api/token", "PUT", **ttl)

    assert (answer.status, answer.body) == (200, "AQAE")
    assert "Token-Ttl-Seconds: 60\r\n" in answer.head and "Content-Length: 4\r\n" in answer.head


@pytest.mark.parametrize("path", ["/no/such/path", META + "no", "/v2/credentials/Other"])
def test_shortened_is_what_is_there(make_metadata, path):
    """A refusal keeps its body, and does not use the fault up."""
    metadata = make_metadata("[faults]\nx = /* empty times 1\n")

    assert ask(metadata, path).body == ask(make_metadata(), path).body != ""
    assert [bool(ask(metadata, META).body) for _ in range(2)] == [False, True]


def test_shortened_failure(make_metadata):
    """A document with another Code can be cut off like any other."""
    metadata = make_metadata("[faults]\nx = /* code Failed truncate 22\n")

    assert ask(metadata, CREDENTIALS).body == '{\n  "Code" : "Failed",'


def test_again_and_again(make_metadata, clock):
    """A fault with "every" strikes at its beginning, and then in each turn."""
    metadata = make_metadata("[faults]\nnone = %s* empty every 60s for 5s\n" % META)
    struck = []

    for second in range(180):
        if not ask(metadata, META + "mac").body:
            struck.append(second)
        clock.now += 1

    assert struck == [*range(5), *range(60, 65), *range(120, 125)]


@pytest.mark.parametrize("words", ["every 60s", "every 60s for 60s", "every 60s for 2m"])
def test_every_needs_a_shorter_for(check, words):
    """A fault that recurs says for how long it strikes each time, and that is shorter."""
    assert check("[faults]\nx = /latest/* empty %s\n" % words) == (1, (
        "fake-metadata: FILE:2: [faults] x: every needs a shorter for; write it like: "
        "every 60s for 5s\n"))


# Faults: what the log says.

REASONS = {  # lines of [faults] -> what the log says behind the request
    "outage = /* status 503": "fault outage: 503",
    "slow = /* delay 1500ms": "fault slow: delay 1.5s",
    "once = /* reset times 1": "fault once: reset",
    "silent = /* no-answer": "fault silent: no-answer",
    "none = /* empty": "fault none: empty",
    "half = /* truncate 40": "fault half: truncate 40",
    "stale = /* expired": "fault stale: expired",
    'denied = /* code Foo message "a text"': "fault denied: code Foo",
    "a token = /* refuse-token": "fault a token: refuse-token",
    "x = /* delay 1s status 503": "fault x: delay 1s; fault x: 503",
    "a = /* delay 1s\nb = /* delay 500ms\nc = /* reset":
        "fault a: delay 1s; fault b: delay 0.5s; fault c: reset",
    "a = /* code Foo\nb = /* truncate 9\nc = /* expired":
        "fault a: code Foo; fault b: truncate 9",  # what is no document any more cannot expire
    "a = /* status 500\nb = /* status 503": "fault a: 500",
    "a = /no/such/path status 503": "",
}


@pytest.mark.parametrize("lines", REASONS)
def test_reason_in_the_log(make_metadata, lines):
    """The line of a request names the faults that struck it, and what they did."""
    metadata = make_metadata("[faults]\n%s\n" % lines)

    answer = ask(metadata, CREDENTIALS, X_aws_ec2_metadata_token=TOKENS.issue(60))

    assert answer.reason == REASONS[lines]


def test_reason_beside_another(make_metadata):
    """A request that is refused behind a fault has both reasons in the log."""
    metadata = make_metadata("[metadata-options]\nhttp-tokens = required\n"
                             "[faults]\nslow = /* delay 2s\n")

    assert ask(metadata, META).reason == (
        "fault slow: delay 2s; no session token, and http-tokens is required")


def test_reason_without_a_fault(make_metadata):
    """A request that no fault strikes has no reason in the log, on the same connection too."""
    metadata = make_metadata("[faults]\nx = /* empty times 1\n")
    loop, _ = converse(metadata, TOKENS, b"GET /latest/ HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)

    assert loop.noted[-1] == ""


def test_name_of_a_fault_cannot_break_the_log(make_metadata):
    """Braces in the name of a fault are no form; what is not printable is refused."""
    answer = ask(make_metadata("[faults]\na {role} = /* code Foo\n"), CREDENTIALS)

    assert answer.reason == "fault a {role}: code Foo"
    assert answer.document["Message"] == "fault a {role} in the configuration of fake-metadata"
    for name in ("a\x1b", "a" * 65):
        with pytest.raises(ConfigError, match="printable"):
            make_metadata("[faults]\n%s = /* code Foo\n" % name)


# Faults on the wire.

FAULTS = """
[faults]
slow    = /latest/meta-data/hostname delay 700ms
reset   = /latest/meta-data/profile reset
silent  = /latest/meta-data/system no-answer
once    = /latest/meta-data/ami-id status 503 times 1
denied  = /latest/meta-data/mac status 429
half    = /latest/meta-data/iam/info truncate 9
token   = /latest/api/token reset times 1
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A service with faults."""
    with Service(tmp_path_factory.mktemp("faulty"), FAULTS) as running:
        yield running


def test_delay_holds_up_its_own_request_only(faulty):
    """While one request waits another one is answered."""
    with faulty.connect() as slow:
        slow.sendall(b"GET /latest/meta-data/hostname HTTP/1.1\r\n"
                     b"Host: localhost\r\nConnection: close\r\n\r\n")

        assert faulty.get(META + "instance-id")[0] == 200
        assert select.select([slow], [], [], 0)[0] == []

        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_reset(faulty):
    """A reset is one: the client gets ECONNRESET."""
    with pytest.raises(ConnectionResetError):
        faulty.request("GET", META + "profile")


def test_no_answer(faulty):
    """Without an answer the connection stays open, and others are served."""
    with faulty.connect(timeout=0.2) as silent:
        silent.sendall(b"GET /latest/meta-data/system HTTP/1.1\r\nHost: localhost\r\n\r\n")

        with pytest.raises(socket.timeout):
            silent.recv(1)
        assert faulty.get(META + "instance-id")[0] == 200


def test_unanswered_request_in_the_log(faulty):
    """A request that a fault leaves without an answer has a line too, at once."""
    with faulty.connect() as silent:
        silent.sendall(b"GET /latest/meta-data/system HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert wait_for(lambda: re.search(
            r'meta-data/system HTTP/1\.1" 0 0 .*" fault silent: no-answer\n', faulty.log()))


def test_truncated_looks_whole(faulty):
    """A client takes a body that is cut off for a whole one, and the connection goes on."""
    got = faulty.raw(b"GET /latest/meta-data/iam/info HTTP/1.1\r\nHost: localhost\r\n\r\n"
                     b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    assert b'\r\n\r\n{\n  "CodeHTTP/1.1 200 OK\r\n' in got


def test_connection_after_a_fault(faulty):
    """After a status by a fault the connection goes on, and after its times the path is good."""
    got = faulty.raw(b"GET /latest/meta-data/ami-id HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2
                     + b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    assert re.findall(rb"HTTP/1\.1 (\d+)", got) == [b"503", b"200", b"200"]


def test_token_that_is_reset_once(faulty):
    """The next try after a reset on the token PUT has a token that works."""
    with pytest.raises(ConnectionResetError):
        faulty.token()

    assert faulty.get(META + "instance-id", faulty.token())[0] == 200


def test_fault_in_the_log(faulty):
    """The log says of a refusal which fault it is."""
    faulty.get(META + "mac")

    assert wait_for(lambda: re.search(
        r'meta-data/mac HTTP/1\.1" 429 .*" fault denied: 429\n', faulty.log()))


def test_faults_end_with_a_reload(serve):
    """A reload without faults ends them."""
    service = serve("[faults]\nx = /latest/* status 503\n")
    assert service.get(META + "mac")[0] == 503

    service.reload("")

    assert service.get(META + "mac")[0] == 200


def test_events_and_faults_over_a_hup(serve):
    """HUP begins nothing anew but what has changed; the log tells once of an event that begins."""
    text = ("[faults]\ntwice = /latest/meta-data/mac status 503 times 2\n"
            "[events]\nspot-interruption = +0s stop\n%s = +0s%s\n")
    rebalance = "rebalance-recommendation"
    service = serve(text % (rebalance, ""))
    notice = service.get(SPOT)[2]
    recommended = service.get(REBALANCE)[2]
    assert service.get(META + "mac")[0] == 503
    wait_for(lambda: utc(time.time()) > json.loads(recommended)["noticeTime"])

    service.reload()
    assert service.get(SPOT)[2] == notice and service.get(REBALANCE)[2] == recommended
    assert [service.get(META + "mac")[0] for _ in range(2)] == [503, 200]
    service.reload(text % (rebalance, " "))  # blanks at the end are none
    service.reload(text % (rebalance, " +1h"))

    assert service.get(SPOT)[2] == notice
    assert service.get(REBALANCE)[2] != recommended
    time_of_notice = json.loads(notice)["time"]
    log = service.log()
    assert log.count("fake-metadata: event spot-interruption: stop at " + time_of_notice) == 1
    assert log.count("fake-metadata: event %s: noticeTime" % rebalance) == 2


def test_event_that_nobody_asks_for(serve):
    """An event that begins is in the log, though nobody asks."""
    service = serve("[events]\nspot-interruption = +1s terminate\n")

    assert wait_for(lambda: "event spot-interruption: terminate at 2" in service.log())


def test_event_over_a_bad_reload(serve):
    """A configuration that is refused leaves events as they are."""
    text = "[events]\nspot-interruption = +0s stop\n"
    service = serve(text)
    notice = service.get(SPOT)[2]
    wait_for(lambda: utc(time.time() + 119) > json.loads(notice)["time"])

    service.reload(text + "x = y\n")
    service.reload(text)

    assert service.get(SPOT)[2] == notice


# Container credentials, further roles, the extended path.

ROLES = "[credentials]\n%s[role Build]\nlifetime = 30m\n[role team+x=1,y.z@home-1]\n" % STATIC
ERROR_KEYS = ["code", "message", "HTTPErrorCode"]
DOCUMENT_KEYS = ["RoleArn", "AccessKeyId", "SecretAccessKey", "Token", "Expiration"]


@pytest.mark.parametrize("role", ["BaseIAMRole", "Build", "team+x=1,y.z@home-1"])
def test_container_credentials(make_metadata, role):
    """Each role has its credentials in the form of ECS, with its ARN."""
    found = ask(make_metadata(ROLES), "/v2/credentials/" + role).document

    assert list(found) == DOCUMENT_KEYS
    assert found["RoleArn"] == "arn:aws:iam::123456789012:role/" + role


def test_container_credentials_are_those_of_the_instance(make_metadata):
    """The role of the instance has the same keys at both endpoints."""
    metadata = make_metadata()
    container, instance = [ask(metadata, path).document
                           for path in ("/v2/credentials/BaseIAMRole", CREDENTIALS)]

    assert ({key: instance[key] for key in DOCUMENT_KEYS[1:5]}
            == {key: container[key] for key in DOCUMENT_KEYS[1:5]})


def test_each_role_has_keys_of_its_own(make_metadata):
    """Two roles have different keys."""
    metadata = make_metadata(ROLES)

    assert len({ask(metadata, "/v2/credentials/" + role).document["AccessKeyId"]
                for role in ("BaseIAMRole", "Build")}) == 2


def test_role_with_a_source_of_its_own(make_metadata):
    """A further role takes its keys from its own source."""
    metadata = make_metadata("[role Build]\n%s" % STATIC)

    assert ask(metadata, "/v2/credentials/Build").document["AccessKeyId"] == "AKIAIOSFODNN7EXAMPLE"
    assert ask(metadata, "/v2/credentials/BaseIAMRole").document["AccessKeyId"].startswith("ASIA")


@pytest.mark.parametrize("path", [
    "/v2/credentials/Other", "/v2/credentials", "/v2/credentials/aws:ec2-instance",
    "/v2/credentials/Build/x", "/v2/credentials/base-iam-role"])
def test_no_such_container_credentials(make_metadata, path):
    """What is no role of the configuration is refused as by the ECS agent."""
    assert ask(make_metadata(ROLES), path).status == 400


@pytest.mark.parametrize("path", ["/v2", META + "iam/security-credentials/Build"])
def test_roles_are_found_at_their_endpoint_only(make_metadata, path):
    """Further roles are not the instance's."""
    assert ask(make_metadata(ROLES), path).status == 404


def test_form_of_an_unknown_role(make_metadata):
    """An unknown role is refused in the form of the container endpoint."""
    assert list(ask(make_metadata(), "/v2/credentials/Other").document) == ERROR_KEYS


def test_container_without_instance_profile(make_metadata):
    """Without a role of the instance further roles are served all the same."""
    metadata = make_metadata("[credentials]\nrole =\n[role Build]\n")

    assert ask(metadata, "/v2/credentials/BaseIAMRole").status == 400
    assert ask(metadata, "/v2/credentials/Build").status == 200
    assert ask(metadata, META + "iam").status == 404


@pytest.mark.parametrize("given, status", [
    ({"Authorization": "Basic c2VjcmV0"}, 200), ({"authorization": "Basic c2VjcmV0"}, 200),
    ({}, 401), ({"Authorization": ""}, 401), ({"Authorization": "c2VjcmV0"}, 401),
    ({"Authorization": "Basic c2VjcmV0x"}, 401), ({"Authorization": "basic c2VjcmV0"}, 401),
    ({"Authorization": "Basic c2VjcmV"}, 401), ({"Authorization": "caf\u00e9"}, 401),
    ({"X_Authorization": "Basic c2VjcmV0"}, 401)])
def test_authorization(make_metadata, given, status):
    """The container endpoint wants the configured token, to the letter, in Authorization."""
    metadata = make_metadata("[container]\nauthorization-token = Basic c2VjcmV0\n")

    assert ask(metadata, "/v2/credentials/BaseIAMRole", **given).status == status


def test_authorization_that_is_not_asked_for(make_metadata):
    """Without a token in the configuration any Authorization will do."""
    assert ask(
        make_metadata(), "/v2/credentials/BaseIAMRole", Authorization="whatever").status == 200


def test_refusal_of_the_container_endpoint(make_metadata):
    """A refusal has Code and Message, and nothing of the token."""
    answer = ask(make_metadata("[container]\nauthorization-token = Basic c2VjcmV0\n"),
                 "/v2/credentials/BaseIAMRole")

    assert list(answer.document) == ERROR_KEYS
    assert "c2VjcmV0" not in answer.body


def test_unknown_role_is_not_told_without_authorization(make_metadata):
    """Which roles there are is told to those only who have the token."""
    metadata = make_metadata("[container]\nauthorization-token = Basic c2VjcmV0\n")

    assert ask(metadata, "/v2/credentials/Other").status == 401


def test_authorization_is_for_the_container_endpoint(make_metadata):
    """The metadata tree does not ask for the token of the container endpoint."""
    assert ask(make_metadata("[container]\nauthorization-token = Basic c2VjcmV0\n"),
               CREDENTIALS).status == 200


def test_container_needs_no_session_token(make_metadata):
    """Where session tokens are required the container endpoint wants its Authorization instead."""
    metadata = make_metadata("[metadata-options]\nhttp-tokens = required\n"
                             "[container]\nauthorization-token = Basic c2VjcmV0\n")

    path = "/v2/credentials/BaseIAMRole"

    assert ask(metadata, path, Authorization="Basic c2VjcmV0").status == 200
    assert ask(metadata, path).status == 401
    assert ask(metadata, CREDENTIALS).status == 401
    assert ask(metadata, CREDENTIALS, **{TOKEN_HEADER: TOKENS.issue(60)}).status == 200


def test_failed_source_at_the_metadata_endpoint(make_metadata):
    """Without credentials the answer is 200 with another Code and a Message, and without keys."""
    answer = ask(make_metadata("[credentials]\nsource = profile\nfile = /nowhere\n"), CREDENTIALS)

    assert answer.status == 200
    assert list(answer.document) == ["Code", "Message", "LastUpdated"]
    assert answer.document["Code"] == "Failed"


def test_failed_source_at_the_container_endpoint(make_metadata):
    """Without credentials the container endpoint answers 503 with Code and Message."""
    answer = ask(make_metadata("[credentials]\nsource = profile\nfile = /nowhere\n"),
                 "/v2/credentials/BaseIAMRole")

    assert answer.status == 503
    assert list(answer.document) == ERROR_KEYS


def test_extended_path_by_default(make_metadata):
    """The extended path is 404 unless asked for: clients fall back on exactly that."""
    metadata = make_metadata()

    for path in ("iam/security-credentials-extended",
                 "iam/security-credentials-extended/BaseIAMRole"):
        assert ask(metadata, META + path).status == 404


def test_extended_path(make_metadata):
    """The extended path lists the role and gives its credentials with the account id."""
    metadata = make_metadata(
        "[credentials]\nextended = yes\n[instance]\naccount-id = 111122223333\n")
    extended = ask(metadata, META + "iam/security-credentials-extended/BaseIAMRole").document

    assert value(metadata, META + "iam/security-credentials-extended/") == "BaseIAMRole"
    assert extended == dict(ask(metadata, CREDENTIALS).document, AccountId="111122223333")


def test_extended_path_without_role(make_metadata):
    """Without a role there is no extended path either."""
    metadata = make_metadata("[credentials]\nextended = yes\nrole =\n")

    assert ask(metadata, META + "iam/security-credentials-extended").status == 404
