#!/usr/bin/env python3
"""Fake EC2 instance metadata service (IMDS) for a development box.

Serves what a real instance finds at http://169.254.169.254/: rotating credentials of an instance
profile, IMDSv1 and IMDSv2, and the whole tree of metadata. One file, standard library only.

    python3 fake_metadata.py [OPTIONS] [HOST | HOST:PORT]          (default 127.0.0.1:8000)
    export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:8000/
    curl http://127.0.0.1:8000/latest/meta-data/iam/security-credentials/BaseIAMRole

Signals: HUP reopens the log and reads the configuration again, USR1 makes new credentials now,
TERM and INT finish what is in flight and exit 0. Files: it writes the log only, and reads what --config
names and what that names. Environment: EC2_LOCAL_HOSTNAME, EC2_LOCAL_IPV4 (public-hostname, public-ipv4),
AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE (source = profile), NOTIFY_SOCKET.

Reading order: configuration, credentials, the instance, routes, faults, session tokens, the service, HTTP,
server, log, daemon and signals, main. Each section uses only those above it.
"""
import binascii
import collections
import errno
import functools
import itertools
import os
import re
import select
import stat
import sys
import time


try:  # what signal, socket, hashlib, heapq and hmac give, without enumerations, OpenSSL and more: 3 MB, 4 ms of a start
    import _signal as signal
    import _socket as socket
    from _blake2 import blake2b
    from _heapq import heappop, heappush
    from _operator import _compare_digest as compare_digest
except ImportError:
    import signal
    import socket
    from hashlib import blake2b
    from heapq import heappop, heappush
    from hmac import compare_digest


class _Unused(type(sys)):
    """Stands for a module that is imported below us and never used by us."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args):
        return self

    def __iter__(self):
        return iter(())


def _import_http_server_without(*unused):
    """Import http.server without email and more that comes along for what we do not use: half of a start, and 6 MB.

    All of it is forgotten again, so that whoever imports it after us gets whole modules.
    """
    stubs = {name: _Unused(name) for name in unused}
    stubs["http"].__path__ = [os.path.join(os.path.dirname(os.__file__), "http")]  # without its statuses, see phrase()
    stubs["socket"] = socket  # socketserver needs no more than we do
    ours = set() if "http" in sys.modules else {"http.server", "socketserver", *stubs} - set(sys.modules)
    sys.modules.update((name, stub) for name, stub in stubs.items() if name in ours)
    try:
        from http.server import BaseHTTPRequestHandler, HTTPServer
    finally:
        for name in ours:
            sys.modules.pop(name, None)
    return BaseHTTPRequestHandler, HTTPServer


BaseHTTPRequestHandler, HTTPServer = _import_http_server_without(*(
    "copy datetime email email.utils html http http.client mimetypes selectors shutil threading urllib urllib.parse"
).split())

VERSION = "1.0"
DEFAULT_BIND = ("127.0.0.1", 8000)  # REDIRECT delivers to 127.0.0.1; a neighbour on the LAN gets nothing

# Versions of the metadata tree, as a real instance lists them (capture of 2026-09).
VERSIONS = ("1.0 2007-01-19 2007-03-01 2007-08-29 2007-10-10 2007-12-15 2008-02-01 2008-09-01 2009-04-04 "
            "2011-01-01 2011-05-01 2012-01-12 2014-02-25 2014-11-05 2015-10-20 2016-04-19 2016-06-30 "
            "2016-09-02 2018-03-28 2018-08-17 2018-09-24 2019-10-01 2020-10-27 2021-01-03 2021-03-23 "
            "2021-07-15 2022-09-24 2024-04-11 2025-10-04 2026-04-15 latest").split()

# Session tokens (EC2 User Guide, "How Instance Metadata Service Version 2 works").
MAX_TOKEN_TTL = 21600  # seconds: six hours
TOKEN_PREFIX = b"\x01\x00\x04"  # what makes real ones begin with "AQAEA"
TOKEN_SHAPE = r"AQAEA[A-Za-z0-9_-]{49}"

# Credentials.
REFRESH_AHEAD = 300  # seconds: "at least five minutes before the expiration of the old credentials"
FETCH_POLL = 0.05  # seconds between two looks at a running command or a changing file
FIRST_FETCH_WAIT = 3  # seconds that the port stays closed for the first credentials
CLIENT_PATIENCE = 0.8  # seconds that a request waits for credentials; most SDKs give up after one
MAX_SOURCE_BYTES = 65536  # output of a credential command, and a shared credentials file
MAX_BACK_OFF = 60  # seconds between two attempts at a source that fails

# HTTP (hardening: every limit has a status of its own, see read_request).
MAX_TARGET = 8192  # bytes, else 414
MAX_HEAD = 16384  # bytes, else 431
MAX_USER_DATA = 16384  # bytes, the limit of EC2
MAX_FIELDS = 128  # header lines, else 431: a head that comes byte by byte is looked at each time
MAX_BODY = 16384  # bytes, else 413; no request to this service needs a body at all
MAX_CHUNKS = 64  # else 413: so is a body
MAX_CHUNK_HEAD = 1024  # bytes of a chunk's size, with extensions
REQUEST_SECONDS = 10  # for a whole request, and for a reader that does not read
IDLE_SECONDS = 60  # between two requests on one connection
LINGER_SECONDS = 2  # for a refused client to read its answer before the connection is reset
STOP_SECONDS = 2  # after TERM, for requests in flight; init scripts kill after 5
MAX_CONNECTIONS = 4096
FEW_CONNECTIONS = 128  # until there are more, a limit of open files that is eight times that is left as it is
RESERVED_FILES = 32  # open files kept for the log, the configuration, the sources of credentials
ACCEPT_BATCH = 128  # connections accepted before the others are looked at
LOOKS = 60  # for the next request before the server sleeps, some 40 microseconds
REQUESTS_PER_TURN = 16  # pipelined requests of one client that are answered before the others are looked at

# Log.
MAX_LOGGED_LINE = 8192  # characters of a request line; with the rest a line stays below 16 KiB
MAX_LOGGED_AGENT = 1024
MAX_LOG_BACKLOG = 1 << 18  # bytes kept for a disk that is full, then lines are counted and dropped
PIPE_BYTES = 4096  # what a pipe that is ready takes without waiting for its reader (PIPE_BUF)


# ---------------------------------------------------------------- configuration ----------------

# Section, key, form, default. "-": nothing unless configured; "=": derived from other facts. A form followed by [] is a
# list separated by commas; eni-ID is the id of a resource; the other names are those of FORMS and PATTERNS. A value may
# be empty where the default is "-", or where the form ends with "?": then a fact that would be derived is left out.
SETTINGS = """
[server]
bind                          address                    -
log                           text                       -
allowed-hosts                 host[]                     -

[metadata-options]
http-tokens                   optional|required          optional
http-endpoint                 enabled|disabled           enabled
http-put-response-hop-limit   1..64                      1
instance-metadata-tags        enabled|disabled           disabled

[instance]
instance-id                   i-ID                       =
instance-type                 instance-type              t3.micro
instance-life-cycle           on-demand|spot|scheduled|capacity-block  =
instance-action               none|shutdown|bundle-pending             none
architecture                  x86_64|arm64|i386          =
system                        nitro|xen|xen-on-nitro     =
ami-id                        ami-ID                     =
ami-launch-index              0..99999                   0
ami-manifest-path             text                       (unknown)
ancestor-ami-ids              ami-ID[]                   -
reservation-id                r-ID                       =
account-id                    account                    123456789012
availability-zone             zone                       us-east-1a
availability-zone-id          zone-id                    =
launch-time                   time                       =
key-name                      text                       -
public-key                    public-key?                =
placement-group               text                       -
partition-number              1..7                       -
host-id                       h-ID                       -
kernel-id                     aki-ID                     -
ramdisk-id                    ari-ID                     -
product-codes                 text[]                     -
billing-products              text[]                     -
hibernation                   true|false                 -
root-device                   device-path                /dev/xvda
ebs-volumes                   device[]                   -
ephemeral-volumes             device[]                   -
swap-device                   device                     -
monitoring                    enabled|disabled           -

[instance] [interface NAME]
mac                           mac                        =
interface-id                  eni-ID                     =
local-ipv4                    ipv4[]?                    =
local-hostname                host?                      =
public-ipv4                   ipv4?                      =
public-hostname               host?                      =
ipv6                          ipv6[]                     -
security-groups               text[]                     =
security-group-ids            sg-ID[]                    =
subnet-id                     subnet-ID                  =
subnet-ipv4-cidr-block        ipv4-block                 =
subnet-ipv6-cidr-blocks       ipv6-block[]               =
vpc-id                        vpc-ID                     =
vpc-ipv4-cidr-blocks          ipv4-block[]               =
vpc-ipv6-cidr-blocks          ipv6-block[]               =
ipv4-prefix                   ipv4-block[]               -
ipv6-prefix                   ipv6-block[]               -
network-card                  0..64                      -

[interface NAME]
device-number                 1..64                      =

[credentials]
role                          role?                      BaseIAMRole
extended                      yes|no                     no

[credentials] [role NAME]
source                        generate|static|profile|process  generate
lifetime                      lifetime                   6h
access-key-id                 own-key-id                 -
secret-access-key             secret                     -
session-token                 secret                     -
profile                       text                       default
file                          text                       -
command                       text                       -
timeout                       duration                   30s

[container]
authorization-token           ascii                      -

[tags]
*                             any                        -

[metadata]
*                             any                        -

[user-data]
file                          text                       -
text                          any                        -

[events]
spot-interruption             spot-interruption          -
rebalance-recommendation      when                       -
scheduled-maintenance         maintenance                -
target-lifecycle-state        lifecycle-states           -

[faults]
*                             fault                      =
"""
NEEDED = {"static": ("access-key-id", "secret-access-key"), "process": ("command",)}  # by source of credentials
KEYS = {"tags": (r"(?!\.{1,2}$|_index$)[a-zA-Z0-9+\-=.,_:@]{1,128}$", "a tag has letters, digits and +-=.,_:@"),
        "metadata": (r"(?=[!-~]+$)(?!(.*/)?\.\.?(/|$))/?([^/%?#]+/)*[^/%?#]+/?$",
                     "write a path below meta-data/, such as placement/host-id")}


def rows(table):
    """Return the words of each line of a table."""
    return [line.split() for line in table.split("\n") if line]


class Record(dict):
    """A dict whose keys can be written as attributes: record.http_tokens is record["http-tokens"], or a KeyError."""

    def __getattr__(self, name):
        return self[name.replace("_", "-")]


class ConfigError(Exception):
    """Say what is wrong in a configuration: file, section, key, and what would be right."""


def load_config(path=None, environ=os.environ):
    """Read and check a configuration file; return a Record of Records, section and key, defaults filled in.

    A named section, such as "interface eth1", stands beside the fixed ones. Without a path: the defaults.
    Raises ConfigError.
    """
    settings = _settings()
    config = Record((kind, _check_section(path, kind, {}, keys)) for kind, keys in settings.items()
                    if "NAME" not in kind)
    for section, pairs in _read_sections(path).items() if path else ():
        kind = section if section in config else re.sub(" .+", " NAME", section)
        if kind not in settings:
            raise ConfigError("%s: [%s]: unknown section%s" % (path, section, _nearest(section, settings)))
        config[section] = _check_section(path, section, pairs, settings[kind])
    for key, variable in (("public-hostname", "EC2_LOCAL_HOSTNAME"), ("public-ipv4", "EC2_LOCAL_IPV4")):
        if environ.get(variable):
            config.instance[key] = _check("environment", "instance", variable, settings["instance"][key][0],
                                          environ[variable])
    return config


def _settings():
    """Return SETTINGS as {section: {key: [form, default]}}."""
    settings = {}
    for line in filter(None, SETTINGS.split("\n")):
        if line.startswith("["):
            sections = [settings.setdefault(name, {}) for name in line[1:-1].split("] [")]
        else:
            key, *form_and_default = line.split()
            for keys in sections:
                keys[key] = form_and_default
    return settings


def _read_sections(path):
    import configparser  # only where there is a configuration: 5 ms of each start
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#", ";"), strict=True,
                                          default_section="", empty_lines_in_values=False)
    parser.optionxform = str
    try:
        parser.read_string(read_file(path).decode("utf-8-sig"), path)
    except OSError as error:
        raise ConfigError("%s: %s" % (path, error.strerror))
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        raise _wrong(path, error.section, _shown(getattr(error, "option", "")), "stands there twice, line %d" % (
            error.lineno))
    except configparser.ParsingError as error:  # its own text would show the line, which may hold a secret
        raise ConfigError("%s: line %d is neither a [section] nor key = value" % (
            path, getattr(error, "lineno", 0) or error.errors[0][0]))
    except UnicodeDecodeError:
        raise ConfigError("%s: is not UTF-8" % path)
    return {section: dict(parser.items(section)) for section in parser.sections()}


def read_file(path, limit=-1):
    """Return the bytes of a file. Raises OSError, also for a pipe, which could make us wait for ever."""
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no file")
        return file.read(limit)


def _check_section(path, section, pairs, keys):
    values = Record((key, _default(form, default)) for key, (form, default) in keys.items() if key != "*")
    key_form, hint = KEYS.get(section, ("", ""))
    for key, text in pairs.items():
        form, default = keys.get(key) or keys.get("*") or (None, None)
        if not form:
            raise _wrong(path, section, _shown(key), "unknown key" + _nearest(key, keys))
        if not re.match(key_form, key):
            raise _wrong(path, section, key, hint)
        values[key] = "" if not text and default == "-" else _check(path, section, key, form, text)
    for key in NEEDED.get(values.get("source"), ()):
        if not values[key]:
            raise _wrong(path, section, key, "missing; source = %s needs it" % values["source"])
    return values


def _default(form, default):
    if default in ("=", "-"):
        return None if default == "=" else ""
    return parse(form, default) if ".." in form or form in FORMS else default


def _check(path, section, key, form, text):
    try:
        return parse(form, text)
    except ValueError as error:
        raise _wrong(path, section, key, error)


def _wrong(path, section, key, words):
    return ConfigError("%s: [%s] %s: %s" % (path, section, key, words))


def _shown(key):
    """Return a key for an error message, unless it may be a token pasted on a line of its own."""
    return key if re.fullmatch("(?!.{40})[A-Za-z]?[a-z0-9]*([_-][A-Za-z]?[a-z0-9]*)*", key) else "(a line)"


def _nearest(name, known):
    import difflib
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return "; did you mean %s?" % near[0] if near else "; known are: " + ", ".join(sorted(known))


def parse(form, text):
    """Return the value of a text in a form of SETTINGS. Raises ValueError with what would be right."""
    if form.endswith("?"):
        return parse(form[:-1], text) if text else ""
    if form.endswith("[]"):
        return "\n".join(parse(form[:-2], item.strip()) for item in text.split(","))  # as the service shows lists
    if "|" in form:
        if text not in form.split("|"):
            raise ValueError("%r is not one of: %s" % (text, ", ".join(form.split("|"))))
        return text
    if ".." in form:
        lowest, highest = map(int, form.split(".."))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and lowest <= int(text) <= highest):
            raise ValueError("%r is not a whole number from %d to %d" % (text, lowest, highest))
        return int(text)
    if form in FORMS:
        return FORMS[form](text)
    pattern, example = PATTERNS.get(form) or (form[:-2] + "([0-9a-f]{8}|[0-9a-f]{17})", form[:-2] + "0123456789abcdef0")
    if not re.fullmatch("(?a)" + pattern, text):
        raise ValueError("not right; write it like " + example)  # without the value, which may be a secret
    return text


DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text):
    """Return the seconds of "1500ms", "90s", "5m", "6h" or "2d"."""
    number = text.rstrip("mshd")
    if not (number.isascii() and number.isdigit() and len(number) < 10 and text[len(number):] in DURATION_UNITS):
        raise ValueError("%r is no duration; write 1500ms, 90s, 5m, 6h or 2d" % text)
    return int(number) * DURATION_UNITS[text[len(number):]]


def lifetime(text):
    """Return the seconds of a lifetime of credentials, one second to a week."""
    if not 1 <= duration(text) <= 7 * 86400:
        raise ValueError("%s is out of range; 1s to 7d" % text)
    return duration(text)


def timestamp(text):
    """Return the seconds since the epoch of an ISO 8601 time, UTC or with an offset; fractions are dropped."""
    import datetime
    match = re.fullmatch(
        r"(?a)(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:[.,]\d+)?([Zz]|UTC|[+-]\d\d:?\d\d)", text)
    try:
        words = " ".join(match.groups()).upper().replace("UTC", "Z")
        return int(datetime.datetime.strptime(words, "%Y-%m-%d %H:%M:%S %z").timestamp())
    except (AttributeError, ValueError, OverflowError):
        raise ValueError("%r is no time; write it as 2026-12-01T08:00:00Z" % text)


def when(text):
    """Return a function from the start (seconds since the epoch) to the time meant by "+90s" or by a UTC time."""
    if text.startswith("+"):
        seconds = duration(text[1:])
        return lambda start: start + seconds
    try:
        fixed = timestamp(text)
    except ValueError:
        raise ValueError("%r is no time; write +90s (after start or reload) or 2026-12-01T08:00:00Z" % text)
    return lambda start: fixed


def text(text):
    """Check a text for one line."""
    if not text or not text.isprintable():
        raise ValueError("empty, or with characters that cannot be shown")
    return text


def ip_address(text, family=socket.AF_INET):
    """Check an IPv4 or IPv6 address and return its usual form."""
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        raise ValueError("%r is no %s address" % (text, "IPv4" if family == socket.AF_INET else "IPv6"))


def ip_block(text, family=socket.AF_INET):
    """Check an address block such as 10.0.0.0/16."""
    address, _, bits = text.partition("/")
    address, bits = ip_address(address, family), parse("0..32" if family == socket.AF_INET else "0..128", bits)
    if block(address, bits) != text:
        raise ValueError("%r is no block; did you mean %s?" % (text, block(address, bits)))
    return text


def block(address, bits):
    """Return the CIDR block of so many bits that holds an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    rest = len(packed) * 8 - bits
    network = int.from_bytes(packed, "big") >> rest << rest
    return "%s/%d" % (socket.inet_ntop(family, network.to_bytes(len(packed), "big")), bits)


def bind_address(text):
    """Return (host, port) of HOST, HOST:PORT, ::1, [::1] or [::1]:PORT."""
    match = re.fullmatch(r"(?a)\[([\w.%:-]+)\](?::(\d{0,5}))?|([\w.%-]+)(?::(\d{0,5}))?|"
                         r"((?:[\w.%-]*:){2}[\w.%:-]*)", text)
    host, port = match.expand(r"\1\3\5 \2\4").split(" ") if match else ("", "")
    if not host or int(port or 0) > 65535:
        raise ValueError("%r is no address; write HOST, HOST:PORT or [IPV6]:PORT" % text)
    if ":" in host:
        ip_address(host.partition("%")[0], socket.AF_INET6)
    return host, int(port or DEFAULT_BIND[1])


MAINTENANCE = {  # Code of a scheduled event -> its Description
    "instance-reboot": "scheduled reboot", "system-reboot": "scheduled reboot",
    "system-maintenance": "scheduled maintenance", "instance-stop": "The instance is running on degraded hardware",
    "instance-retirement": "The instance is running on degraded hardware"}
LIFECYCLE_STATES = ("Detached|InService|Standby|Terminated|Warmed:Hibernated|Warmed:Running|Warmed:Stopped|"
                    "Warmed:Terminated")


def spot_interruption(text):
    """Return (when, action) of "WHEN terminate|stop|hibernate"; the notice appears at WHEN."""
    at, action = _words(text, 2, "+90s terminate")
    return when(at), parse("terminate|stop|hibernate", action)


def maintenance(text):
    """Return [(when, code, not_before, not_after, end, state)] of "WHEN CODE FROM TO [completed|canceled WHEN]"."""
    events = []
    for item in text.split(","):
        words = item.split()
        at, code, not_before, not_after, state, end = _words(
            words + ["completed"] + words[3:4] if len(words) == 4 else words, 6,
            "+30s system-reboot 2026-12-01T08:00:00Z 2026-12-01T10:00:00Z canceled +90s")
        events.append((when(at), parse("|".join(MAINTENANCE), code), when(not_before), when(not_after),
                       when(end), parse("completed|canceled", state)))
    return events


def lifecycle_states(text):
    """Return [(when, state)] of "[WHEN] STATE, WHEN STATE, ..."."""
    states = []
    for item in text.split(","):
        at, state = _words(item if len(item.split()) > 1 else "+0s " + item, 2, "InService, +120s Terminated")
        states.append((when(at), parse(LIFECYCLE_STATES, state)))
    return states


def _words(text, count, example):
    words = text if isinstance(text, list) else text.split()
    if len(words) != count:
        raise ValueError("%r is not understood; write it like: %s" % (" ".join(words), example))
    return words


FAULT_ACTIONS = dict(word.split("=") for word in (  # word -> form of what follows it; "": nothing does
    "status=400..599 delay=duration reset= no-answer= expired= refuse-token= code=code").split())
FAULT_WORDS = {**FAULT_ACTIONS, "from": "when", "for": "duration", "times": "1..999999999",
               "probability": "probability"}


def fault(text):
    """Return the parts of "PATH ACTION [from WHEN] [for DURATION] [times N] [probability P]" as a dict."""
    path, *words = text.split() or [""]
    if not path.startswith("/"):
        raise ValueError("%r must begin with a path, such as /latest/meta-data/*" % text)
    parts, rest = {"path": path}, iter(words)
    for word in rest:
        if word not in FAULT_WORDS or word in parts:
            raise ValueError("%r is not understood; words are: %s" % (word, ", ".join(FAULT_WORDS)))
        parts[word] = parse(FAULT_WORDS[word], next(rest, "")) if FAULT_WORDS[word] else True
    if not set(FAULT_ACTIONS) & set(parts):
        raise ValueError("what is to happen? one of: %s" % ", ".join(FAULT_ACTIONS))
    return parts


def probability(text):
    """Return a number above 0 and up to 1."""
    if not re.fullmatch(r"0?\.[0-9]+|1(\.0+)?", text) or not float(text):
        raise ValueError("%r is no probability; write a number such as 0.2, up to 1" % text)
    return float(text)


FORMS = {
    "any": str, "text": text, "address": bind_address, "duration": duration, "lifetime": lifetime, "time": timestamp,
    "when": when, "probability": probability, "fault": fault, "spot-interruption": spot_interruption,
    "maintenance": maintenance, "lifecycle-states": lifecycle_states, "ipv4": ip_address, "ipv4-block": ip_block,
    "ipv6": lambda text: ip_address(text, socket.AF_INET6), "ipv6-block": lambda text: ip_block(text, socket.AF_INET6)}

# Form, pattern, example. An own key id may also be "minioadmin".
PATTERNS = r"""
host           [\w:.-]*\w                            imds.example.com
instance-type  [a-z][a-z0-9-]*\.[a-z0-9-]+           t3.micro
account        \d{12}                                123456789012
zone           ([a-z]{2}|us-gov|us-isob?|eusc-de)-[a-z]+-\d([a-z]|-[a-z]+-\d[a-z]|-wl\d-[a-z]+-wlz-\d)  us-east-1a
zone-id        [a-z0-9]+(-[a-z]+\d)?(-[a-z]+)?-(az|wlz)\d+         use1-az1
public-key     (ssh|ecdsa|sk)-\S+ [A-Za-z0-9+/=]+( .*)?            ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA... name
device         \w+                                   sdf
device-path    /dev/\w+                              /dev/xvda
mac            ([0-9a-f]{2}:){5}[0-9a-f]{2}          0e:ff:d5:40:fe:7d
role           [\w+=,.@-]{1,64}                      BaseIAMRole
key-id         [A-Z0-9]{16,128}                      ASIAIOSFODNN7EXAMPLE
own-key-id     [\w-]{3,128}                          ASIAIOSFODNN7EXAMPLE
ascii          [ -~]+                                letters without accents
secret         [!-~]+                                wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
code           [A-Za-z][A-Za-z0-9.]*                 AssumeRoleUnauthorizedAccess
"""
PATTERNS = {form: (pattern.strip(), example.strip()) for form, pattern, example in (
    filter(None, line.split("  ")) for line in PATTERNS.split("\n") if line)}


# ---------------------------------------------------------------- credentials ------------------

class SourceError(Exception):
    """Say why a source gave no credentials; the text goes to the log and holds no secret."""


Keys = collections.namedtuple("Keys", "access_key_id secret_access_key session_token expiration remark")
Keys.__doc__ = "What a source gives. expiration: seconds since the epoch, None if it tells none; remark: for the log."


class Credentials:
    """One generation of credentials; times in seconds since the epoch."""

    def __init__(self, keys, last_updated, expiration):
        self.keys, self.last_updated, self.expiration = keys, last_updated, expiration

    def document(self, account_id=None):
        """Return the document of security-credentials/ROLE; with AccountId for the extended path (Java SDK PR 6176)."""
        names = "Code LastUpdated Type AccessKeyId SecretAccessKey Token Expiration" + " AccountId" * bool(account_id)
        return pretty_json(zip(names.split(), (
            "Success", utc(self.last_updated), "AWS-HMAC", *self.keys[:3], utc(self.expiration), account_id)))

    def container_document(self, role_arn, account_id):
        """Return the document of the ECS and EKS endpoints (AWS SDK reference, container credential provider)."""
        return compact_json(zip("RoleArn AccessKeyId SecretAccessKey Token Expiration AccountId".split(), (
            role_arn, *self.keys[:3], utc(self.expiration), account_id)))


def utc(seconds):
    """Return the form that all clients parse, 2026-12-01T08:00:00Z: no fraction, no +00:00 (botocore, minio, Rust)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def pretty_json(fields):
    """Return a JSON object as the real service writes it: two spaces, blanks around the colon, no final LF."""
    return "{\n%s\n}" % ",\n".join("  %s : %s" % (quoted(key), _json_value(value)) for key, value in fields)


def compact_json(fields, comma=", ", colon=": "):
    """Return a JSON object in one line; all values are strings."""
    return "{%s}" % comma.join(quoted(key) + colon + quoted(value) for key, value in fields)


def quoted(text):
    """Return a JSON string; by hand, since importing json for it takes 2 ms of each start."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    if not text.isprintable():
        text = re.sub("[\0-\x1f]", lambda character: "\\u%04x" % ord(character.group()), text)
    return '"%s"' % text


def _json_value(value):
    if isinstance(value, list):
        return "[ %s ]" % ", ".join(map(quoted, value))
    return "null" if value is None else quoted(value)


def failure_document(code, message, now):
    """Return what stands in place of credentials when there are none (IAM User Guide, troubleshooting EC2 roles)."""
    return pretty_json([("Code", code), ("Message", message), ("LastUpdated", utc(now))])


def generate(settings, randomness, cancelled):
    """Make fake keys of realistic form and length; "IQoJb3JpZ2luX2Vj" begins every real session token."""
    return Keys("ASIA" + base32(randomness(16)), base64(randomness(30)),
                base64(b"!\n\torigin_ec" + randomness(756)), None, "")


def base32(data):
    """Return a letter or digit per byte, of those that AWS uses in ids of keys."""
    return "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[byte % 32] for byte in data)


def base64(data):
    """Return base64 in one line."""
    return binascii.b2a_base64(data, newline=False).decode()


def static(settings, randomness, cancelled):
    """Return the keys that stand in the configuration."""
    return Keys(settings.access_key_id, settings.secret_access_key, settings.session_token, None, "")


def profile(settings, randomness, cancelled):
    """Return the keys of a profile in an AWS shared credentials or config file, or of its credential_process."""
    for path in watched_files(settings):
        found = _profile_section(path, settings.profile, cancelled)
        if "credential_process" in found and "aws_access_key_id" not in found:
            return process(Record(settings, command=found["credential_process"]), randomness, cancelled)
        if "aws_access_key_id" in found or "aws_secret_access_key" in found:
            remark = "others can read %s: chmod o-r it" % path if os.stat(path).st_mode & stat.S_IROTH else ""
            expiration = found.get("aws_expiration") or found.get("x_security_token_expires")
            return _keys(found.get("aws_access_key_id"), found.get("aws_secret_access_key"),
                         found.get("aws_session_token") or found.get("aws_security_token"), expiration, remark)
    raise SourceError("no profile %r with an access key id in %s; for SSO and assumed roles use source = process" % (
        settings.profile, " or ".join(watched_files(settings))))


def watched_files(settings):
    """Return the files that the source of credentials depends on: a change of one means new credentials."""
    if settings.source != "profile":
        return ()
    if settings.file:
        return (os.path.expanduser(settings.file),)
    return tuple(os.path.expanduser(os.environ.get(variable) or usual) for variable, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")))


def _profile_section(path, name, cancelled):
    import configparser
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        parser.read_string(_read_settled(path, cancelled))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SourceError("%s: %s" % (path, error.strerror))
    except (configparser.Error, UnicodeDecodeError):
        raise SourceError("%s is not a credentials file, or half of one" % path)
    for section in (name, "profile " + name):  # the second form is that of ~/.aws/config
        if parser.has_section(section):
            return dict(parser.items(section))
    return {}


def _read_settled(path, cancelled):
    """Return the text of a file once two reads agree, so that no key is taken with the secret of another."""
    before = None
    for _ in range(100):
        now = read_file(path, MAX_SOURCE_BYTES + 1)
        if len(now) > MAX_SOURCE_BYTES:
            raise SourceError("%s is over %d bytes" % (path, MAX_SOURCE_BYTES))
        if now == before:
            return now.decode("utf-8-sig")
        before = now
        if cancelled(FETCH_POLL):
            break
    raise SourceError("%s never stops changing" % path)


def process(settings, randomness, cancelled):
    """Return the keys that a command prints, in the protocol of credential_process (AWS SDK reference, version 1)."""
    import json
    output = run_command(settings.command, settings.timeout, cancelled)
    try:
        found = json.loads(output.decode("utf-8"))
    except (ValueError, RecursionError):
        raise SourceError("the command printed no JSON")
    if not isinstance(found, dict) or found.get("Version") != 1:
        raise SourceError('the command printed no {"Version": 1, ...}')
    return _keys(found.get("AccessKeyId"), found.get("SecretAccessKey"), found.get("SessionToken"),
                 found.get("Expiration"), "")


def _keys(access_key_id, secret_access_key, session_token, expiration, remark):
    """Return Keys, or raise SourceError unless they are whole; token and expiration may be None or ""."""
    session_token, expiration = ("" if value is None else value for value in (session_token, expiration))
    for form, value, name in (("key-id", access_key_id, "access key id"),
                              ("secret", secret_access_key, "secret access key"),
                              ("secret", "-" if session_token == "" else session_token, "session token")):
        try:
            parse(form, value)
        except (TypeError, ValueError):
            raise SourceError("the %s is missing or has not the form of one" % name)
    try:
        return Keys(access_key_id, secret_access_key, session_token,
                    None if expiration == "" else timestamp(expiration), remark)
    except (ValueError, TypeError):
        raise SourceError("the expiration is no ISO 8601 time")


def run_command(command, timeout, cancelled):
    """Run a command without a shell and return what it prints; SourceError if it fails, hangs or floods.

    It leads a process group of its own, which is killed at the end whatever happens.
    """
    import shlex
    import subprocess
    try:
        words = shlex.split(command) or [""]
        child = subprocess.Popen(words, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, start_new_session=True, env=_command_environment(os.environ))
    except (OSError, ValueError) as error:
        raise SourceError("the command cannot be started: %s" % (getattr(error, "strerror", None) or error))
    try:
        output, complaint = _read_command(child, time.monotonic() + timeout, cancelled)
        if child.wait():
            raise SourceError("the command failed with %d: %s" % (child.returncode, _presentable(complaint)))
        return output
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:  # nobody is left
            pass
        child.wait()
        child.stdout.close()
        child.stderr.close()


def _read_command(child, deadline, cancelled):
    """Return (stdout, stderr) of a command once it has ended, even if a grandchild still holds the pipes."""
    received = {child.stdout: b"", child.stderr: b""}
    for pipe in received:
        os.set_blocking(pipe.fileno(), False)
    while True:
        ended = child.poll() is not None  # asked before reading, so that its last words are read
        for pipe in received:
            received[pipe] += pipe.read(MAX_SOURCE_BYTES + 1) or b""
            if len(received[pipe]) > MAX_SOURCE_BYTES:
                raise SourceError("the command printed over %d bytes" % MAX_SOURCE_BYTES)
        if ended:
            return received.values()
        if time.monotonic() > deadline:
            raise SourceError("the command took too long and was killed")
        if cancelled(FETCH_POLL):
            raise SourceError("the command was stopped")


def _command_environment(environ):
    """Return what a credential command gets: never the way back to this service, which would ask itself."""
    kept = ("PATH HOME USER LOGNAME SHELL LANG TZ TMPDIR DBUS_SESSION_BUS_ADDRESS SSL_CERT_FILE HTTP_PROXY HTTPS_PROXY "
            "NO_PROXY http_proxy https_proxy no_proxy").split()
    environment = {name: value for name, value in environ.items() if name in kept or re.match(
        "AWS_(?!EC2_|CONTAINER_)|LC_|XDG_|GPG|PASSWORD_STORE", name)}
    return dict(environment, AWS_EC2_METADATA_DISABLED="true")


def _presentable(complaint):
    """Return the last line of what a command said on stderr, without anything that could be a key, secret or token."""
    lines = complaint.decode("utf-8", "replace").strip().splitlines() or ["(it said nothing)"]
    line = re.sub(r"[A-Za-z0-9/+=_.~%-]{16,}", lambda run: "..." if re.search("[A-Z0-9]", run.group()) else run.group(),
                  lines[-1])
    return "".join(character if character.isprintable() else "?" for character in line[:200])


SOURCES = {"generate": generate, "static": static, "profile": profile, "process": process}
SLOW_SOURCES = ("profile", "process")  # read files and run commands: fetched in a thread of their own


class Rotation:
    """The rotating credentials of one role: fetched ahead of expiry, one fetch at a time, the last good ones kept.

    All methods are called by the thread of the server; a slow fetch runs in a thread of its own, which hands its
    outcome to `post`, a function that has a callable called by the server's thread; without `post` it is fetched at
    once. `fetch(cancelled)` returns Keys or raises SourceError; cancelled(seconds) sleeps so long, and tells whether
    nobody waits for the outcome any more. `settings` are those of [credentials]. `clock` is the wall clock, since
    credentials expire by it; `monotonic` paces the attempts.
    """

    _good = _thread = None  # the Credentials, the thread of a slow fetch
    pending = False  # a fetch is under way, whose outcome a request without credentials may wait for
    _again = False  # asked for meanwhile
    _cancelled = False
    _refresh_at = _failures = _retry_at = 0  # the last one on the monotonic clock, after a failure

    def __init__(self, role, settings, fetch, report, post=None, clock=time.time, monotonic=time.monotonic):
        self.role, self.settings = role, settings
        self._fetch, self._report, self._post, self._files = fetch, report, post, watched_files(settings)
        self._clock, self._monotonic = clock, monotonic
        self._seen = self._fingerprint()

    def current(self):
        """Return the Credentials of now, or None: never expired ones, whatever the clock does."""
        now, good = self._clock(), self._good
        if good and good.last_updated - 1 <= now < self._refresh_at:
            return good
        self._refresh_when_due()
        good = self._good
        return good if good and self._clock() < good.expiration else None

    def refresh(self):
        """Fetch new credentials now, or once more after the fetch under way, which may have begun too early."""
        if self.pending:
            self._again = True
            return
        self.pending, self._seen = True, self._fingerprint()
        if not self._post:
            self._settle(self._attempt())
            return
        import threading  # only for slow sources: 1 ms of each start
        self._thread = threading.Thread(target=lambda: self._post(functools.partial(self._settle, self._attempt())),
                                        daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._settle(SourceError(str(error)))

    def tick(self):
        """Do what has become due; called once a second."""
        if self._files and not self.pending and self._fingerprint() != self._seen:
            self.refresh()
        self._refresh_when_due()

    def cancel(self, wait=0):
        """End a fetch under way and take no outcome any more; wait so many seconds for its command to be gone."""
        self._cancelled = True
        if wait and self.pending and self._thread:
            self._thread.join(wait)

    def _refresh_when_due(self):
        now, good = self._clock(), self._good
        due = not good or now >= self._refresh_at or now < good.last_updated - 1  # the clock was set back
        if due and not self.pending and self._monotonic() >= self._retry_at:
            self.refresh()

    def _attempt(self):
        try:
            return self._fetch(self._is_cancelled)
        except SourceError as error:
            return error
        except Exception as error:  # whatever a source does, the service goes on
            return SourceError("%s in the source" % type(error).__name__)

    def _is_cancelled(self, seconds=0):
        time.sleep(seconds)
        return self._cancelled

    def _settle(self, outcome):
        """Take the outcome of a fetch: Keys or a SourceError."""
        self.pending = False
        if self._cancelled:
            return
        now = self._clock()
        if isinstance(outcome, Keys) and outcome.expiration is not None and outcome.expiration <= now:
            outcome = SourceError("its credentials expired at %s" % utc(outcome.expiration))
        if isinstance(outcome, Keys):
            self._accept(outcome, now)
        else:
            self._reject(outcome, now)
        if self._again:
            self._again = False
            self.refresh()

    def _accept(self, keys, now):
        expiration = now + self.settings.lifetime if keys.expiration is None else keys.expiration
        if not self._good or self._good.keys != keys or keys.expiration is None:
            self._report("new credentials for %s: ...%s, until %s%s" % (
                self.role, keys.access_key_id[-4:], utc(expiration), keys.remark and "; " + keys.remark))
        self._good = Credentials(keys, now, expiration)
        self._refresh_at = expiration - margin(expiration - now)
        self._failures = self._retry_at = 0

    def _reject(self, error, now):
        wait = min(MAX_BACK_OFF, 2 ** min(self._failures, 10))
        self._failures += 1
        self._retry_at = self._monotonic() + wait
        kept = self._good and now < self._good.expiration
        self._report("no new credentials for %s: %s; %s, next attempt in %d s" % (
            self.role, error, "the old ones serve until " + utc(self._good.expiration) if kept else "there are none",
            wait))

    def _fingerprint(self):
        """Return what changes when a watched file is written, replaced, deleted, or made readable."""
        marks = []
        for path in self._files:
            try:
                status = os.stat(path)
                marks.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            except OSError as error:
                marks.append(error.errno)
        return marks


def margin(validity):
    """Return how many seconds ahead of expiry to fetch: a quarter of the validity, 5 minutes at least, half at most.

    With six hours that is 90 minutes: more than the 15 in which botocore asks again and again for newer ones.
    """
    return min(validity / 2, max(REFRESH_AHEAD, validity / 4))


# ---------------------------------------------------------------- the instance -----------------

# Fact -> what it follows from, where it is not configured; each row uses the facts above it. One that is configured as
# empty stays away. Nothing contradicts anything, since nothing is said twice.
INSTANCE_FACTS = {
    "instance-id": lambda f: unique("i-", f.box),
    "document-version": lambda f: "2017-09-30",  # of the identity document
    "availability-zone-id": lambda f: f.zone_id,
    "architecture": lambda f: "arm64" if f.family == "a1" or "g" in f.family.lstrip(LETTERS) else "x86_64",
    "system": lambda f: "xen" if f.family in XEN_FAMILIES else "nitro",
    "ami-id": lambda f: unique("ami-", f.region),
    "reservation-id": lambda f: unique("r-", f.instance_id),
    "pending-time": lambda f: utc(f.launch_time),
    "public-key": lambda f: f.key_name and "ssh-ed25519 %s %s" % (
        base64(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + _digest("key", f.key_name)), f.key_name),
    "instance-profile-arn": lambda f: (
        f.role and "arn:%(partition)s:iam::%(account-id)s:instance-profile/%(role)s" % f),
    "instance-profile-id": lambda f: "AIPA" + base32(_digest(f.instance_profile_arn)[:17]),
    "root-name": lambda f: f.root_device.rpartition("/")[2],
    "volumes": lambda f: [{"volume": "%s%d" % (kind, number), "device": device}
                          for kind, first in (("ebs", 1), ("ephemeral", 0))
                          for number, device in enumerate(filter(None, f[kind + "-volumes"].split("\n")), first)],
}
INTERFACE_FACTS = {  # "first" is the interface of the instance, "others" are those above this one, "seed" is its own
    "device-number": lambda f: 1 + max(other.device_number for other in f.others),
    "mac": lambda f: "0e:" + ":".join("%02x" % byte for byte in _digest("mac", f.seed)[:5]),
    "interface-id": lambda f: unique("eni-", f.seed),
    "local-ipv4": lambda f: _address(
        f.subnet_ipv4_cidr_block or _first(f.vpc_ipv4_cidr_blocks or "") or (
            f.first.subnet_ipv4_cidr_block if f.others else "172.31.0.0/16"),  # of a default VPC
        [other.local_ipv4 for other in f.others], f.seed),
    "first-ipv4": lambda f: _first(f.local_ipv4),
    "first-ipv6": lambda f: _first(f.ipv6),
    "local-hostname": lambda f: "%s.%s" % (
        "ip-" + f.first_ipv4.replace(".", "-") if f.first_ipv4 else f.first.instance_id,
        "ec2.internal" if f.first.region == "us-east-1" else f.first.region + ".compute.internal"),
    "public-ipv4": lambda f: "" if f.others or not f.first_ipv4 else "203.0.113.%d" % _number(
        1, 254, "public", f.seed),  # documentation, RFC 5737
    "public-hostname": lambda f: f.public_ipv4 and "ec2-%s.%s.%s" % (
        f.public_ipv4.replace(".", "-"),
        "compute-1" if f.first.region == "us-east-1" else f.first.region + ".compute",
        f.first.domain),
    "association": lambda f: f.public_ipv4 and f.first_ipv4,
    "security-groups": lambda f: f.first.security_groups or "default",
    "owner-id": lambda f: f.first.account_id,
    "security-group-ids": lambda f: _group_ids(f, f.security_groups.split("\n")),
    "vpc-id": lambda f: f.first.vpc_id or unique("vpc-", f.owner_id, f.first.region),
    "vpc-ipv4-cidr-blocks": lambda f: _shared_block(f, "first-ipv4", "vpc-ipv4-cidr-blocks", 16),
    "vpc-ipv6-cidr-blocks": lambda f: _shared_block(f, "first-ipv6", "vpc-ipv6-cidr-blocks", 56),
    "subnet-ipv4-cidr-block": lambda f: _shared_block(
        f, "first-ipv4", "subnet-ipv4-cidr-block", max(20, _bits(f.vpc_ipv4_cidr_blocks))),
    "subnet-ipv6-cidr-blocks": lambda f: _shared_block(
        f, "first-ipv6", "subnet-ipv6-cidr-blocks", max(64, _bits(f.vpc_ipv6_cidr_blocks))),
    "subnet-id": lambda f: _subnet_id(f),
}
TOLD_ALIKE = """
vpc-id     vpc-ipv4-cidr-blocks
vpc-id     vpc-ipv6-cidr-blocks
subnet-id  subnet-ipv4-cidr-block
subnet-id  subnet-ipv6-cidr-blocks
"""  # by all interfaces in one VPC, in one subnet
WITHIN = """
local-ipv4               subnet-ipv4-cidr-block
subnet-ipv4-cidr-block   vpc-ipv4-cidr-blocks
ipv6                     subnet-ipv6-cidr-blocks
subnet-ipv6-cidr-blocks  vpc-ipv6-cidr-blocks
"""  # what must be in what
LETTERS = "abcdefghijklmnopqrstuvwxyz"
XEN_FAMILIES = set("t1 t2 m1 m2 m3 m4 c1 c3 c4 cc2 cr1 r3 r4 i2 d2 x1 x1e g2 g3 g3s p2 p3 hs1 f1 h1".split())


def instance_facts(config, box, now):
    """Return the facts of the instance, those that are configured and those that follow from them.

    `box` tells this box from others; `now` is the start, in seconds since the epoch. Empty facts are left out.
    Raises ConfigError.
    """
    facts = Record(config.instance, box=box, role=config.credentials.role)
    facts.update(_place(facts.availability_zone), family=facts.instance_type.partition(".")[0])
    facts["extended-role"] = facts.role if config.credentials.extended == "yes" else ""
    if facts.launch_time is None:
        facts["launch-time"] = _boot_time(now)
    if facts.instance_life_cycle is None:
        facts["instance-life-cycle"] = "spot" if config.events.spot_interruption else "on-demand"
    if config.metadata_options.instance_metadata_tags == "enabled":
        facts["tags"] = [{"tag": tag, "tag-value": value} for tag, value in config.tags.items()]
    _derive(facts, INSTANCE_FACTS)
    facts["key-name"] = facts.public_key and (facts.key_name or "".join(facts.public_key.split(" ", 2)[2:]))
    if facts.public_key and not facts.key_name:
        raise ConfigError("[instance] public-key: needs a key-name beside it, or a comment at its end")
    interfaces = _interfaces(config, facts)
    return Record(interfaces[0], interfaces=interfaces)


def _derive(facts, table):
    for key, value in table.items():
        if facts.get(key) is None:
            facts[key] = value(facts)


def _interfaces(config, instance):
    """Return the facts of all network interfaces; those of the first one are the instance's own. Raises ConfigError."""
    instance["device-number"] = 0
    interfaces = []
    for section in ["instance"] + [section for section in config if section.startswith("interface ")]:
        facts = Record(config[section]) if interfaces else instance
        facts.update(first=instance, others=list(interfaces), seed=instance.instance_id + section)
        try:
            _derive(facts, INTERFACE_FACTS)
            _check_interface(facts)
        except ValueError as error:
            raise ConfigError("[%s] %s" % (section, error))
        interfaces.append(facts)
    for group, key in rows(TOLD_ALIKE):
        told = {facts[group]: [] for facts in interfaces}
        for facts in interfaces:
            told[facts[group]] += [item for item in facts[key].split("\n") if item and item not in told[facts[group]]]
        for facts in interfaces:
            facts[key] = "\n".join(told[facts[group]])
    for facts in interfaces:
        facts["vpc-ipv4-cidr-block"] = _first(facts.vpc_ipv4_cidr_blocks)
        del facts["first"], facts["others"], facts["seed"]
    return [{key: value for key, value in facts.items() if value not in ("", None)} for facts in interfaces]


def _first(lines):
    return lines.partition("\n")[0]


def unique(prefix, *seed):
    """Return an id such as i-0123456789abcdef0, always the same for the same seed."""
    return prefix + "0" + _digest(prefix, *seed).hex()[:16]


def _number(lowest, highest, *seed):
    return lowest + int.from_bytes(_digest(*seed)[:8], "big") % (highest - lowest + 1)


def _digest(*seed):
    return blake2b("\0".join(seed).encode(), digest_size=32).digest()


# Beginning of a region, its partition and domain; all others are aws and amazonaws.com.
PARTITIONS = """
cn       aws-cn      amazonaws.com.cn
us-gov   aws-us-gov  amazonaws.com
us-iso   aws-iso     c2s.ic.gov
us-isob  aws-iso-b   sc2s.sgov.gov
eusc-de  aws-eusc    amazonaws.eu
"""


def _place(zone):
    """Return the facts that follow from an availability zone: region, partition, domain and the id of the zone.

    The ids: use1-az1 for us-east-1a, usw2-lax1-az1 for us-west-2-lax-1a, use1-wl1-bos-wlz1 for us-east-1-wl1-bos-wlz-1.
    Which letter is which id is shuffled for each real account; here a is az1.
    """
    rest = zone.lstrip(LETTERS + "-")
    region, place, letter = zone[:1 - len(rest)], rest[1:-1], rest[-1]  # place: "", "-lax-1" or "-wl1-bos-wlz-"
    area, direction, number = region.rsplit("-", 2)
    partition, domain = next((row[1:] for row in rows(PARTITIONS) if row[0] == area), ("aws", "amazonaws.com"))
    for word in "north", "south", "east", "west", "central":
        direction = direction.replace(word, word[0])
    zone_id = area.replace("-", "").replace("gov", "g") + direction + number + (
        place[:-1] + letter if place.endswith("-wlz-") else
        "%s-az%d" % (place and "-" + place.replace("-", ""), LETTERS.index(letter) + 1))
    return {"region": region, "partition": partition, "domain": domain, "zone-id": zone_id}


def _boot_time(now):
    """Return when this box booted: as on a real instance, the pending time stays over restarts of the service."""
    try:
        with open("/proc/stat") as file:
            return int(file.read().partition("\nbtime ")[2].split()[0])
    except (OSError, IndexError):
        return int(now)


def _address(cidr, taken, seed):
    """Return a free address in a block, "" without one; EC2 keeps the first four of each subnet and the last."""
    network, _, bits = cidr.partition("/")
    size = 1 << 32 - int(bits or 32)
    for step in range(size if network else 0):
        number = int.from_bytes(socket.inet_aton(network), "big") + min(4, size - 1) + (
            _number(0, size, "address", seed) + step) % max(1, size - 5)
        address = socket.inet_ntoa(number.to_bytes(4, "big"))
        if address not in "\n".join(taken).split("\n"):
            return address
    return ""


def _shared_block(facts, address, key, bits):
    """Return the block that an address is in: the first interface's if it is, so that they are in one VPC."""
    shared = facts.first[key] or ""
    return facts[address] and (shared if within(facts[address], shared) else block(facts[address], bits))


def _subnet_id(facts):
    """Return the id of a subnet, which is that of an interface above in the same block."""
    for other in facts.others:
        if any(facts[key] and facts[key] == other[key]
               for key in ("subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks")):
            return other.subnet_id
    return unique("subnet-", facts.vpc_id, facts.first.availability_zone,
                  facts.subnet_ipv4_cidr_block or facts.subnet_ipv6_cidr_blocks)


def _group_ids(facts, groups):
    """Return the ids of security groups, which are those of the first interface where it has them."""
    first = facts.first
    known = dict(zip(first.security_groups.split("\n"), (first.security_group_ids or "").split("\n")))
    return "\n".join(known.get(group) or unique("sg-", facts.owner_id, first.region, group) for group in groups)


def _check_interface(facts):
    """Refuse an address outside its subnet, a subnet outside its VPC, and anything that another interface has."""
    for inner, outer in rows(WITHIN):
        for item in filter(None, facts[inner].split("\n")):
            if not within(item, facts[outer]):
                raise ValueError("%s: %s is not within %s, %s" % (inner, item, outer, facts[outer] or "nothing"))
    for key in "mac interface-id device-number local-ipv4 public-ipv4 ipv6".split():
        for other in facts.others:
            if set(str(facts[key]).split("\n")) & set(str(other[key]).split("\n")) - {""}:
                raise ValueError("%s: %s is that of another interface" % (key, facts[key]))


def within(inner, blocks):
    """Tell whether an address or a block is in one of the LF-joined blocks."""
    address = inner.partition("/")[0]
    return any(_bits(item) <= _bits(inner) and block(address, _bits(item)) == item
               for item in filter(None, blocks.split("\n")) if (":" in address) == (":" in item))


def _bits(blocks):
    """Return the bits of the first block; those of an address are all."""
    bits = _first(blocks).partition("/")[2]
    return int(bits) if bits else 128 if blocks else 0


def event_facts(events, start, now):
    """Return (facts, next): what the events say now, and the time at which they will say something else.

    The times in a notice are fixed from its start on. Sources: EC2 User Guide, "Spot Instance interruption notices",
    "EC2 instance rebalance recommendations", "Scheduled events", "Retrieve the target lifecycle state".
    """
    facts, scheduled, history, moments = {}, [], [], []

    def begun(at):
        moments.append(at(start))
        return now >= moments[-1]

    if events.spot_interruption and begun(events.spot_interruption[0]):
        facts["spot-action"] = action = events.spot_interruption[1]
        facts["spot-time"] = utc(moments[-1] + (0 if action == "hibernate" else 120))  # two minutes
        if action == "terminate":
            facts["termination-time"] = facts["spot-time"]
    if events.rebalance_recommendation and begun(events.rebalance_recommendation):
        facts["notice-time"] = utc(moments[-1])
    for at, state in sorted(events.target_lifecycle_state, key=lambda row: row[0](start)):
        if begun(at):
            facts["target-lifecycle-state"] = state
    for number, (at, code, not_before, not_after, end, state) in enumerate(events.scheduled_maintenance):
        over = begun(end)
        if begun(at):
            (history if over else scheduled).append(zip(
                "NotBefore Code Description EventId NotAfter State".split(),
                (_event_time(not_before(start)), code,
                 ("[%s] " % state.capitalize() if over else "") + MAINTENANCE[code],
                 unique("instance-event-", str(int(moments[-1])), str(number)),
                 _event_time(not_after(start)), state if over else "active")))
    facts["scheduled-events"], facts["past-events"] = map(_json_list, (scheduled, history))
    return facts, min((moment for moment in moments if moment > now), default=float("inf"))


def _event_time(seconds):
    return time.strftime("%d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def _json_list(events):
    objects = ["  " + pretty_json(event).replace("\n", "\n  ") for event in events]
    return "[ \n%s \n]" % ", \n".join(objects) if objects else "[]"


# ---------------------------------------------------------------- routes -----------------------

# Key, and the fact that it shows; []: a list of those that stand in lines; null where there is none.
IDENTITY_DOCUMENT = """
accountId                account-id
architecture             architecture
availabilityZone         availability-zone
billingProducts          billing-products[]
devpayProductCodes       -
marketplaceProductCodes  product-codes[]
imageId                  ami-id
instanceId               instance-id
instanceType             instance-type
kernelId                 kernel-id
pendingTime              pending-time
privateIp                first-ipv4
ramdiskId                ramdisk-id
region                   region
version                  document-version
"""


def identity_document(facts):
    """Return the instance identity document, keys in the order of the real one."""
    fields = []
    for key, fact in rows(IDENTITY_DOCUMENT):
        value = facts.get(fact.rstrip("[]"))
        fields.append((key, value.split("\n") if value and fact.endswith("[]") else value))
    return pretty_json(fields)


def all_tags(facts):
    """Return all tags as one JSON object."""
    return compact_json([(member["tag"], member["tag-value"]) for member in facts.tags], ",", ":")


def role_credentials(facts):
    """Serve the rotating credentials of the instance's role."""
    return Live(facts.rotations[facts.role], Credentials.document)


def extended_credentials(facts):
    """Serve the same with AccountId, where clients of that path are to be tested."""
    return Live(facts.rotations[facts.extended_role], Credentials.document, facts.account_id)


def identity_credentials(facts):
    """Serve the credentials of the instance identity role."""
    return Live(facts.rotations[IDENTITY_ROLE], Credentials.document)


def container_credentials(facts):
    """Serve the credentials of any role as ECS and EKS do."""
    arn = "arn:%s:iam::%s:role/%s" % (facts.partition, facts.account_id, facts.container_role)
    return Live(facts.rotations[facts.container_role], Credentials.container_document, arn, facts.account_id)


def user_data(facts):
    """Return the user data, bytes as they were given."""
    return Leaf(facts.user_data, "application/octet-stream", facts.modified)


IDENTITY_ROLE = "aws:ec2-instance"  # every instance has it, with an instance profile or without
IDENTITY_INFO = """{{
  "Code" : "Success",
  "LastUpdated" : "{updated}",
  "AccountId" : "{account-id}"
}}"""
IAM_INFO = """{{
  "Code" : "Success",
  "LastUpdated" : "{updated}",
  "InstanceProfileArn" : "{instance-profile-arn}",
  "InstanceProfileId" : "{instance-profile-id}"
}}"""

# Path -> value. A value is a text with {facts} in it, or a function of the facts; a row of which a fact is missing is
# not there. A path with {mac}, {tag}, {volume} or {container-role} stands for one path per interface, tag, volume, role.
# Every directory is derived from these paths; the few that a real instance lists in another way are written down.
ROUTES = {
    "/": "\n".join(VERSIONS),
    "/latest": "dynamic\nmeta-data\nuser-data",  # the same with user data and without
    "/latest/dynamic/fws/instance-monitoring": "{monitoring}",
    "/latest/dynamic/instance-identity/document": identity_document,
    "/latest/meta-data/ami-id": "{ami-id}",
    "/latest/meta-data/ami-launch-index": "{ami-launch-index}",
    "/latest/meta-data/ami-manifest-path": "{ami-manifest-path}",
    "/latest/meta-data/ancestor-ami-ids": "{ancestor-ami-ids}",
    "/latest/meta-data/autoscaling/target-lifecycle-state": "{target-lifecycle-state}",
    "/latest/meta-data/block-device-mapping/ami": "{root-name}",
    "/latest/meta-data/block-device-mapping/root": "{root-device}",
    "/latest/meta-data/block-device-mapping/swap": "{swap-device}",
    "/latest/meta-data/block-device-mapping/{volume}": "{device}",
    "/latest/meta-data/events/maintenance/history": "{past-events}",
    "/latest/meta-data/events/maintenance/scheduled": "{scheduled-events}",
    "/latest/meta-data/events/recommendations/rebalance": '{{"noticeTime": "{notice-time}"}}',
    "/latest/meta-data/hibernation/configured": "{hibernation}",
    "/latest/meta-data/hostname": "{local-hostname}",
    "/latest/meta-data/iam/info": IAM_INFO,
    "/latest/meta-data/iam/security-credentials/{role}": role_credentials,
    "/latest/meta-data/iam/security-credentials-extended/{extended-role}": extended_credentials,
    "/latest/meta-data/identity-credentials/ec2/info": IDENTITY_INFO,
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance": identity_credentials,
    "/latest/meta-data/instance-action": "{instance-action}",
    "/latest/meta-data/instance-id": "{instance-id}",
    "/latest/meta-data/instance-life-cycle": "{instance-life-cycle}",
    "/latest/meta-data/instance-type": "{instance-type}",
    "/latest/meta-data/ipv6": "{first-ipv6}",
    "/latest/meta-data/kernel-id": "{kernel-id}",
    "/latest/meta-data/local-hostname": "{local-hostname}",
    "/latest/meta-data/local-ipv4": "{first-ipv4}",
    "/latest/meta-data/mac": "{mac}",
    "/latest/meta-data/metrics/vhostmd": '<?xml version="1.0" encoding="UTF-8"?>',  # all that is left of it
    "/latest/meta-data/network/interfaces/macs/{mac}/device-number": "{device-number}",
    "/latest/meta-data/network/interfaces/macs/{mac}/interface-id": "{interface-id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv4-associations/{public-ipv4}": "{association}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv4-prefix": "{ipv4-prefix}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv6-prefix": "{ipv6-prefix}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv6s": "{ipv6}",
    "/latest/meta-data/network/interfaces/macs/{mac}/local-hostname": "{local-hostname}",
    "/latest/meta-data/network/interfaces/macs/{mac}/local-ipv4s": "{local-ipv4}",
    "/latest/meta-data/network/interfaces/macs/{mac}/mac": "{mac}",
    "/latest/meta-data/network/interfaces/macs/{mac}/network-card": "{network-card}",
    "/latest/meta-data/network/interfaces/macs/{mac}/owner-id": "{owner-id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/public-hostname": "{public-hostname}",
    "/latest/meta-data/network/interfaces/macs/{mac}/public-ipv4s": "{public-ipv4}",
    "/latest/meta-data/network/interfaces/macs/{mac}/security-group-ids": "{security-group-ids}",
    "/latest/meta-data/network/interfaces/macs/{mac}/security-groups": "{security-groups}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-id": "{subnet-id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-ipv4-cidr-block": "{subnet-ipv4-cidr-block}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-ipv6-cidr-blocks": "{subnet-ipv6-cidr-blocks}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-id": "{vpc-id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-block": "{vpc-ipv4-cidr-block}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks": "{vpc-ipv4-cidr-blocks}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv6-cidr-blocks": "{vpc-ipv6-cidr-blocks}",
    "/latest/meta-data/placement/availability-zone": "{availability-zone}",
    "/latest/meta-data/placement/availability-zone-id": "{availability-zone-id}",
    "/latest/meta-data/placement/group-name": "{placement-group}",
    "/latest/meta-data/placement/host-id": "{host-id}",
    "/latest/meta-data/placement/partition-number": "{partition-number}",
    "/latest/meta-data/placement/region": "{region}",
    "/latest/meta-data/product-codes": "{product-codes}",
    "/latest/meta-data/profile": "default-hvm",
    "/latest/meta-data/public-hostname": "{public-hostname}",
    "/latest/meta-data/public-ipv4": "{public-ipv4}",
    "/latest/meta-data/public-keys": "0={key-name}",  # cloud-init and facter read the index before the "="
    "/latest/meta-data/public-keys/0/openssh-key": "{public-key}\n",  # the one value that ends with a line feed
    "/latest/meta-data/ramdisk-id": "{ramdisk-id}",
    "/latest/meta-data/reservation-id": "{reservation-id}",
    "/latest/meta-data/security-groups": "{security-groups}",
    "/latest/meta-data/services/domain": "{domain}",
    "/latest/meta-data/services/partition": "{partition}",
    "/latest/meta-data/spot/instance-action": '{{"action": "{spot-action}", "time": "{spot-time}"}}',
    "/latest/meta-data/spot/termination-time": "{termination-time}",
    "/latest/meta-data/system": "{system}",
    "/latest/meta-data/tag-sets/instance": all_tags,
    "/latest/meta-data/tags/instance/{tag}": "{tag-value}",
    "/latest/user-data": user_data,
    "/v2/credentials/{container-role}": container_credentials,  # AWS_CONTAINER_CREDENTIALS_FULL_URI
}
MEMBERS = {"{mac}": "interfaces", "{tag}": "tags", "{volume}": "volumes", "{container-role}": "roles"}
LISTED = "/latest/meta-data/", "/latest/dynamic/"  # where directories show what is in them


class Leaf:
    """A value as it is served: its headers and its body, made once."""

    __slots__ = ("head", "body")

    def __init__(self, body, content_type="text/plain", modified=0):
        self.body = body if isinstance(body, bytes) else body.encode()
        self.head = ("Content-Type: %s\r\nAccept-Ranges: none\r\nLast-Modified: %s\r\nContent-Length: %d\r\n" % (
            content_type, http_date(modified), len(self.body))).encode()


class Listing(Leaf):
    """What is in a directory, LF-joined without a final LF, as crawlers need it."""

    __slots__ = ()


class Live:
    """A value that changes while the tree stays: credentials, rendered once per generation."""

    _credentials = _leaf = None

    def __init__(self, rotation, render, *details):
        self.rotation, self._render, self._details = rotation, render, details

    def leaf(self):
        """Return the Leaf of now, or None while there are no good credentials."""
        credentials = self.rotation.current()
        if credentials is not self._credentials:
            self._credentials = credentials
            self._leaf = credentials and Leaf(self._render(credentials, *self._details),
                                              modified=credentials.last_updated)
        return self._leaf


@functools.lru_cache(maxsize=4)
def http_date(seconds):
    """Return the form of dates in HTTP headers, Tue, 01 Dec 2026 08:00:00 GMT."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))


def build_tree(facts, own=()):
    """Return {path: Leaf or Live}, directories included, of ROUTES and of the user's own (path, value) pairs.

    Raises ConfigError where a path is to be a value and a directory.
    """
    leaves = {}
    for path, value in ROUTES.items():
        collection = next((name for mark, name in MEMBERS.items() if mark in path), None)
        for member in facts.get(collection, ()) if collection else (facts,):
            _add_row(leaves, path, value, member, facts.modified)
    for path, value in own:
        _add_own(leaves, "/latest/meta-data/" + path.strip("/"), value, facts.modified)
    if own:
        _check_nesting(leaves)
    tree = {path: Listing("\n".join(sorted(name for name in names if name + "/" not in names)),
                          modified=facts.modified) for path, names in _directories(leaves).items()}
    tree.update(leaves)
    return tree


def _add_row(leaves, path, value, facts, modified):
    try:
        path = path.format_map(facts)
        value = value(facts) if callable(value) else value.format_map(facts)
    except KeyError:  # a fact is missing: this instance has no such row
        return
    leaves[path] = Leaf(value, modified=modified) if isinstance(value, str) else value


def _add_own(leaves, path, value, modified):
    if value:
        leaves[path] = Leaf(value, modified=modified)
        return
    for other in [other for other in leaves if other == path or other.startswith(path + "/")]:
        del leaves[other]


def _check_nesting(leaves):
    for path in leaves:
        for slash in list(re.finditer("/", path))[3:]:
            parent = path[:slash.start()]
            if parent in leaves and parent != "/latest/meta-data/public-keys":  # which stands for its directory
                raise ConfigError("[metadata] %s: cannot have a value, since %s is below it" % (
                    parent[len("/latest/meta-data/"):], path[len("/latest/meta-data/"):]))


def _directories(leaves):
    """Return {directory: names of what is in it}, with a slash behind the names of directories."""
    names = collections.defaultdict(set)
    for path in leaves:
        name, slash = "", ""
        while path.startswith(LISTED):
            path, _, name = path.rpartition("/")
            names[path].add(name + slash)
            slash = "/"
    return names


def canonical_path(target):
    """Return the path of a target: no query, decoded, without empty parts, dated versions as "latest".

    So do //, /./, %69nstance-id, a slash at the end and ?x=1 reach the resource, as on a real instance.
    """
    path = target.partition("?")[0]
    if "%" in path:
        path = re.sub("%([0-9A-Fa-f]{2})", lambda code: chr(int(code.group(1), 16)), path)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts and parts[0] in VERSIONS and parts[1:] != ["api", "token"]:  # tokens come from /latest only
        parts[0] = "latest"
    return "/" + "/".join(parts)


# ---------------------------------------------------------------- faults -----------------------

class Fault:
    """A failure on demand, as one line of [faults] tells it: which requests suffer, when, how often, and how."""

    status = delay = code = None
    reset = no_answer = expired = refuse_token = False
    times, probability = float("inf"), 1

    def __init__(self, name, parts, start):
        import random
        for word, value in parts.items():
            setattr(self, word.replace("-", "_"), value)
        self._pattern = re.compile(re.escape(canonical_path(parts["path"])).replace(r"\*", ".*") + "$", re.DOTALL)
        self._from = parts["from"](start) if "from" in parts else start if "for" in parts else float("-inf")
        self._until = self._from + parts["for"] if "for" in parts else float("inf")
        self._random = random.Random(name)  # seeded, so that a test that fails fails again

    def strikes(self, path, now, has_token=True, found=None):
        """Tell whether a request for a path, where `found` is, suffers from this fault; one that does counts."""
        live = isinstance(found, Live)
        codes = live or self.code and b'"Code" : ' in getattr(found, "body", b"")
        if self.refuse_token and not has_token or (self.code or self.expired) and not codes:
            return False
        if not self._pattern.match(path) or not self._from <= now < self._until:
            return False
        if self.times <= 0 or self._random.random() >= self.probability:
            return False
        self.times -= 1
        return True


# ---------------------------------------------------------------- session tokens ---------------

class SessionTokens:
    """Session tokens of IMDSv2 that need no memory: an expiry on the monotonic clock, and a MAC (BLAKE2b) over it.

    With the boot id of the kernel in the key they survive a restart of the service, which 14 of 24 clients need, and
    die with the boot, as the monotonic clock does. 56 characters that begin with AQAEA and end with ==, as real ones.
    """

    def __init__(self, key, clock=time.monotonic, randomness=os.urandom):
        self._key, self._clock, self._randomness = key, clock, randomness
        self._expiry = functools.lru_cache(maxsize=256)(self._read_expiry)  # clients send the same one again and again

    def issue(self, ttl):
        """Return a new token that lives for ttl seconds; with 0 it is dead already, as on a real instance."""
        expiry = int((self._clock() + ttl) * 1000)
        payload = self._text(TOKEN_PREFIX + expiry.to_bytes(5, "big") + self._randomness(7))
        return (payload + self._seal(payload)).decode()

    def remaining(self, token):
        """Return the seconds that a token has yet to live, or None if it is none of ours or dead."""
        left = self._expiry(token) - self._clock() if len(token) == 56 else 0
        return left if left > 0 else None

    def _read_expiry(self, token):
        raw = token.encode("latin-1", "replace")
        if not compare_digest(raw[20:], self._seal(raw[:20])):
            return 0
        payload = binascii.a2b_base64(raw[:20].replace(b"-", b"+").replace(b"_", b"/"))
        return int.from_bytes(payload[3:8], "big") / 1000

    def _seal(self, payload):
        return self._text(blake2b(payload, key=self._key, digest_size=25).digest())

    def _text(self, data):
        return binascii.b2a_base64(data, newline=False).replace(b"+", b"-").replace(b"/", b"_")


def session_token_key(path="/proc/sys/kernel/random/boot_id"):
    """Return the key of session tokens: the same until the next boot, unguessable from outside this box."""
    try:
        with open(path, "rb") as file:
            seed = file.read()
    except OSError:
        seed = os.urandom(32)
    return blake2b(b"fake-metadata session tokens " + seed, digest_size=32).digest()


# ---------------------------------------------------------------- the service ------------------

# IMDS, the container endpoints of ECS and EKS, and this box.
OWN_HOSTS = "169.254.169.254 fd00:ec2::254 169.254.170.2 169.254.170.23 fd00:ec2::23 127.0.0.1 ::1 localhost".split()


class Imds:
    """The metadata service as one configuration describes it: options, tree and faults.

    A reload makes a new one and replaces it as a whole. `rotations` is {role: Rotation}; `hosts` are the names under
    which it listens. Raises ConfigError.
    """

    def __init__(self, config, rotations, box, hosts=(), clock=time.time):
        options = config.metadata_options
        self.enabled = options.http_endpoint == "enabled"
        self.token_required = options.http_tokens == "required"
        self.hop_limit = options.http_put_response_hop_limit
        self.authorization = config.container.authorization_token
        self.hosts = {host.lower().strip("[]") for host in [
            *OWN_HOSTS, *hosts, *config.server.allowed_hosts.split("\n")] if host}
        self.clock, self._started, self._events = clock, clock(), config.events
        self.faults = [Fault(name, parts, self._started) for name, parts in config.faults.items()]
        self._own = list(config.metadata.items())
        self._facts = Record(instance_facts(config, box, self._started), rotations=rotations)
        self._facts["roles"] = [Record(self._facts, **{"container-role": role})
                                for role in rotations if role != IDENTITY_ROLE]
        self._facts.update(_user_data(config.user_data))
        if any(self._events.values()):  # with all begun: what [metadata] would collide with later is refused now
            self._tree_with(event_facts(self._events, self._started, float("inf"))[0], self._started)
        self._build(self._started)

    def find(self, path):
        """Return the Leaf or Live at a path, None if there is none now."""
        if not self._built <= self.clock() < self._stale:
            self._build(self.clock())
        return self._tree.get(path)

    def paths(self):
        """Return all paths with a value of their own, sorted."""
        return sorted(path for path, found in self._tree.items() if not isinstance(found, Listing))

    def striking(self, path, has_token):
        """Return the faults that a request for a path, with a session token or without, suffers from."""
        now, found = self.clock(), self.find(path)
        return [fault for fault in self.faults if fault.strikes(path, now, has_token, found)]

    def _build(self, now):
        """Make the tree of now; it serves until an event changes it, an hour at most: LastUpdated of iam/info moves."""
        facts, change = event_facts(self._events, self._started, now)
        self._tree = self._tree_with(facts, now)
        self._built, self._stale = now, min(change, now + 3600)

    def _tree_with(self, events, now):
        return build_tree(Record(self._facts, updated=utc(now), modified=now, **events), self._own)


def _user_data(settings):
    if settings.file and settings.text:
        raise ConfigError("[user-data] text: there is a file already; only one of them")
    data = settings.text.encode()
    if settings.file:
        try:
            data = read_file(settings.file, MAX_USER_DATA + 1)
        except OSError as error:
            raise ConfigError("[user-data] file: %s: %s" % (settings.file, error.strerror))
    if len(data) > MAX_USER_DATA:
        raise ConfigError("[user-data] %s: over %d bytes, which EC2 would not take" % (
            "file" if settings.file else "text", MAX_USER_DATA))
    return {"user-data": data} if data else {}


def make_rotations(config, report, post, former=(), randomness=os.urandom):
    """Return {role: Rotation} of a configuration; one whose settings are as in `former` goes on as it is.

    `former` is the outcome of an earlier call. Fetches nothing yet. Raises ConfigError.
    """
    wanted = {IDENTITY_ROLE: Record(source="generate", lifetime=6 * 3600),
              config.credentials.role: config.credentials}
    for section, settings in config.items():
        kind, _, role = section.partition(" ")
        role = role.strip()
        if kind != "role":
            continue
        if role in wanted or not re.fullmatch("(?a)" + PATTERNS["role"][0], role):
            raise ConfigError("[%s]: %s" % (section, "there is a role of that name already" if role in wanted else
                                            "not the name of a role; letters, digits and _+=,.@-"))
        wanted[role] = settings
    wanted.pop("", None)  # no instance profile
    rotations = {}
    for role, section in wanted.items():
        settings = Record((key, value) for key, value in section.items() if key not in ("role", "extended"))
        if role in former and former[role].settings == settings:
            rotations[role] = former[role]
            continue
        fetch = functools.partial(SOURCES[settings.source], settings, randomness)
        rotations[role] = Rotation(role, settings, fetch, report, post if settings.source in SLOW_SOURCES else None)
    return rotations


def box_id(paths=("/etc/machine-id", "/var/lib/dbus/machine-id")):
    """Return what tells this box from others and stays over reboots: machine-id, else host name and MAC."""
    for path in paths:
        try:
            with open(path) as file:
                found = file.read().strip()
        except OSError:
            continue
        if len(found) >= 32:
            return found
    import uuid
    return "%s %012x" % (socket.gethostname(), uuid.getnode())


# ---------------------------------------------------------------- HTTP -------------------------

TOKEN_PATH = "/latest/api/token"
CONTAINER_PATH = "/v2/credentials/"
FAULT_REASON = "a fault of the configuration"  # in the log, and in the documents of failures


class HTTPError(Exception):
    """A refusal, raised anywhere and rendered in one place; the reason goes to the log, not to the client."""

    def __init__(self, status, reason="", headers=b"", body=None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers
        self.body = body or '{"error": "%s"}' % phrase(status).lower()


@functools.lru_cache(maxsize=256)
def phrase(status):
    """Return the reason phrase of a status."""
    from http import HTTPStatus  # 60 members: only where something is refused
    return HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else "Unknown"


def container_error(status, code, message):
    """Return a refusal in the form of the container endpoints."""
    return HTTPError(status, message, body=compact_json([("Code", code), ("Message", message)]))


class Postponed(Exception):
    """Ask the handler again after so many seconds, the argument; nobody else waits."""


class Dropped(Exception):
    """Answer nothing: reset the connection if the argument is true, or leave it open without a word."""


class Request:
    """What the head of a well-formed request says; `act` is the Handler's method, `line` and `agent` go to the log."""

    method = path = agent = ""
    hosts, minor, persistent = (), 1, False

    def __init__(self, line, fields):
        self.line, self.fields = escaped(line)[:MAX_LOGGED_LINE], fields


# Requests are checked before anything is decided from them: what is not well-formed by RFC 9112 is refused, also where
# the RFC lets a server be lenient, since leniency hides headers (a bare LF, a folded line, a blank before the colon).
_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
REQUEST_LINE = re.compile(rb"(%s+) ([!\"$-~]+) HTTP/(\d)\.(\d)" % _TCHAR)
FIELD = re.compile(rb"(%s+):[ \t]*([\t -~\x80-\xff]*)" % _TCHAR)
METHOD_START = rb"%s+(?: |\Z)" % _TCHAR
CHUNK = rb"([0-9A-Fa-f]{1,8})(?:;[\t -~\x80-\xff]*)?\r\n"
CHUNK_START = rb"(?:[0-9A-Fa-f]{1,8}(?:;[\t -~\x80-\xff]*)?\r?)?\Z"
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]]*)(?::\d{0,5})?$")
ABSOLUTE = r"(?i)http://([^/?]*)"
TOKEN_HEADER = "x-aws-ec2-metadata-token"
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
ONCE = {"host", "content-length", "transfer-encoding", "expect", "authorization", TOKEN_HEADER, TTL_HEADER}


def read_request(received):
    """Return (Request, end) of the first request in the bytes received.

    The Request is None while the head is not all there, the end is None while the body is not. Raises HTTPError.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
    if end < 0:
        _check_unfinished(received)
        return None, None
    request = (parse_head if end <= 1024 else parse_head.__wrapped__)(received[:end])  # no large ones kept
    end += 4
    if request.chunked:
        return request, _chunked_end(received, end)
    return request, end + request.length if len(received) >= end + request.length else None


def _check_unfinished(received):
    """Refuse at once what can never become a request."""
    line, complete, _ = received.partition(b"\r\n")
    if has_bare_end(received) or not re.match(METHOD_START, received):
        raise HTTPError(400, "malformed request")
    if complete:
        _parse_line(line)
    elif len(line) > MAX_TARGET + 64:
        raise HTTPError(414, "target over %d bytes" % MAX_TARGET)
    if len(received) > MAX_HEAD:
        raise HTTPError(431, "head over %d bytes" % MAX_HEAD)


def has_bare_end(received):
    """Tell whether there is a CR or an LF that is not one of a pair; a CR at the end may become one."""
    pairs = received.count(b"\r\n")
    return received.count(b"\n") != pairs or received.count(b"\r") - received.endswith(b"\r") != pairs


def _parse_line(line):
    match = REQUEST_LINE.fullmatch(line)
    if not match:
        raise HTTPError(400, "malformed request line")
    method, target, major, minor = (part.decode() for part in match.groups())
    if major != "1":
        raise HTTPError(505, "HTTP/%s.%s" % (major, minor))
    if len(target) > MAX_TARGET:
        raise HTTPError(414, "target over %d bytes" % MAX_TARGET)
    if not hasattr(Handler, "do_" + method):
        raise HTTPError(501, "unknown method")
    return method, target, int(minor)


@functools.lru_cache(maxsize=64)
def parse_head(head):
    """Return the Request of a head without its empty line; kept, since clients repeat theirs to the byte."""
    line, *lines = head.split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise HTTPError(431, "over %d header lines" % MAX_FIELDS)
    method, target, minor = _parse_line(line)
    fields = _parse_fields(lines)
    request = Request(line, fields)
    request.method, request.minor, request.act = method, minor, getattr(Handler, "do_" + method)
    request.agent = escaped(fields.get("user-agent", ""))[:MAX_LOGGED_AGENT]
    authority = None if target.startswith("/") else re.match(ABSOLUTE, target)
    request.path = canonical_path(target[authority.end():] or "/" if authority else target)
    if not target.startswith("/") and not authority and (method, target) != ("OPTIONS", "*"):
        raise HTTPError(400, "malformed target")
    if "host" not in fields and minor:
        raise HTTPError(400, "no Host")
    request.hosts = [host_name(text) for text in (fields.get("host"), authority and authority.group(1))
                     if text is not None]
    options = {word.strip().lower() for word in fields.get("connection", "").split(",")}
    request.persistent = "close" not in options and (minor > 0 or "keep-alive" in options)
    _frame(request)
    return request


def _parse_fields(lines):
    fields = {}
    for line in lines:
        match = FIELD.fullmatch(line)
        if not match:
            raise HTTPError(400, "malformed header line")
        name, value = match.group(1).decode().lower(), match.group(2).strip(b" \t").decode("latin-1")
        if name in fields:
            if name in ONCE:
                raise HTTPError(400, "repeated " + name)
            value = fields[name] + "," + value
        fields[name] = value
    return fields


def host_name(text):
    """Return the host of HOST, HOST:PORT or [IPV6]:PORT in lower case, without brackets. Raises HTTPError."""
    match = AUTHORITY.match(text)
    if not match:
        raise HTTPError(400, "malformed Host")
    return match.group(1).strip("[]").lower()


def _frame(request):
    """Tell how long the body is, and whether the client waits to be asked for it. No request here needs a body."""
    length, coding = request.fields.get("content-length", "0"), request.fields.get("transfer-encoding")
    request.chunked = coding is not None
    if request.chunked and (coding.lower() != "chunked" or "content-length" in request.fields or not request.minor):
        raise HTTPError(400, "Transfer-Encoding that is not just chunked")
    if not (length.isascii() and length.isdigit()) or length.startswith("0") and length != "0":
        raise HTTPError(400, "malformed Content-Length")
    if len(length) > 9 or int(length) > MAX_BODY:
        raise HTTPError(413, "body over %d bytes" % MAX_BODY)
    request.length = int(length)
    expectation = request.fields.get("expect") if request.minor else None
    request.expects = expectation is not None
    if request.expects and (expectation.lower(), request.method, request.path) != ("100-continue", "PUT", TOKEN_PATH):
        raise HTTPError(417, "Expect")  # as the real service does; on the token PUT s3fs needs its 100


def _chunked_end(received, start):
    """Return where a chunked body ends, None while it is not all there. Raises HTTPError."""
    at = start
    for _ in range(MAX_CHUNKS):
        match = re.match(CHUNK, received[at:at + MAX_CHUNK_HEAD])
        if not match and not re.match(CHUNK_START, received[at:]):
            raise HTTPError(400, "malformed chunk")
        size = int(match.group(1), 16) if match else 0
        if max(len(received) if not match else 0, at + size) - start > MAX_BODY:
            raise HTTPError(413, "body over %d bytes" % MAX_BODY)
        if not match:
            return None
        at += match.end()
        if not size:
            return _trailers_end(received, at)
        at += size + 2
        if len(received) < at:
            return None
        if received[at - 2:at] != b"\r\n":
            raise HTTPError(400, "malformed chunk")
    raise HTTPError(413, "over %d chunks" % MAX_CHUNKS)


def _trailers_end(received, at):
    if received.startswith(b"\r\n", at):
        return at + 2
    end = received.find(b"\r\n\r\n", at)
    if end - at > MAX_HEAD or len(received) - at > MAX_HEAD and end < 0:
        raise HTTPError(431, "trailers over %d bytes" % MAX_HEAD)
    if has_bare_end(received[at:]) if end < 0 else not all(map(FIELD.fullmatch, received[at:end].split(b"\r\n"))):
        raise HTTPError(400, "malformed trailer")
    return end + 4 if end >= 0 else None


def escaped(text):
    """Return a text as one field of a log line: printable, no quote, no backslash, no session token."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    text = re.sub(r"[^ !#-\[\]-~]", lambda character: "\\x%02x" % ord(character.group()), text)
    return re.sub(TOKEN_SHAPE, "(token)", text) if "AQAEA" in text else text


def broken_request(received):
    """Return what stands for a request that cannot be read: enough to answer and to log it."""
    return Request(received[:2 * MAX_LOGGED_LINE].split(b"\r\n")[0], {})


def aged(leaf, now):
    """Return a document of credentials with times that make it expired (a fault of the configuration)."""
    body = leaf.body.decode()
    for key, seconds in (("LastUpdated", now - 7 * 3600), ("Expiration", now - 3600)):
        body = re.sub(r'("%s" ?: )"[^"]*"' % key, r'\1"%s"' % utc(seconds), body)
    return Leaf(body, modified=now)


def place_of(error):
    """Return the kind and the place of an unexpected error in one line; not its text, which may hold a secret."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return "%s in %s, line %d" % (type(error).__name__, trace.tb_frame.f_code.co_name, trace.tb_lineno)


class Clock:
    """The wall clock, and how HTTP and the log write the second that it shows, made once a second."""

    def __init__(self, clock=time.time):
        self._clock, self._second, self.stamp, self.headers = clock, None, "", b""
        self.tick()

    def tick(self):
        """Look at the clock; called once for each round of the server."""
        second = int(self._clock())
        if second != self._second:
            self._second, self.stamp = second, utc(second)
            self.headers = ("Date: %s\r\nServer: EC2ws\r\n" % http_date(second)).encode()


class Handler(BaseHTTPRequestHandler):
    """Decides one request: the Request in, the bytes of the answer out; it neither reads nor writes.

    After `respond`, `status`, `size` and `reason` are for the log, `hop_limit` for the socket.
    """

    status, size, reason, hop_limit = 200, 0, "", 0
    ttl = b""  # the header with the seconds that the session token has left
    faults, delay, code, expired = (), 0, None, None

    def __init__(self, request, imds, tokens, clock, patient_until):
        self.request, self.imds, self.tokens, self.clock = request, imds, tokens, clock
        self.persistent = request.persistent  # whether the connection stays open; the server may decide otherwise
        self._patient_until = patient_until
        if imds.faults:
            self.faults = imds.striking(request.path, TOKEN_HEADER in request.fields)
            self.delay = sum(fault.delay or 0 for fault in self.faults)

    def respond(self):
        """Return the whole answer as bytes. Raises Postponed or Dropped where there is none now, or none ever."""
        try:
            if self.faults:
                self._suffer()
            self._admit()
            return self.request.act(self)
        except HTTPError as error:
            return self.refusal(error)
        except (Postponed, Dropped):
            raise
        except Exception as error:
            return self.refusal(HTTPError(500, place_of(error)))

    def do_GET(self):
        """Answer with the value at the path, or with the listing of a directory."""
        leaf = self._leaf()
        self.size = len(leaf.body)
        return self._found(leaf) + leaf.body

    def do_HEAD(self):
        """Answer as to a GET, without the body."""
        return self._found(self._leaf())

    def do_PUT(self):
        """Issue a session token (EC2 User Guide; TTL 0 as captured). Never through a proxy, which an SSRF could use."""
        if self.request.path != TOKEN_PATH:
            raise HTTPError(403, "PUT is for /latest/api/token")
        if "x-forwarded-for" in self.request.fields:
            raise HTTPError(403, "X-Forwarded-For: session tokens are not given through a proxy")
        ttl = self.request.fields.get(TTL_HEADER, "")
        if not re.match("[0-9]{1,5}$", ttl) or int(ttl) > MAX_TOKEN_TTL:
            raise HTTPError(400, "X-aws-ec2-metadata-token-ttl-seconds must be 1 to %d" % MAX_TOKEN_TTL)
        self.hop_limit = self.imds.hop_limit
        self.ttl = b"X-Aws-Ec2-Metadata-Token-Ttl-Seconds: %d\r\n" % int(ttl)
        return self._plain(self.tokens.issue(int(ttl)).encode())

    def do_OPTIONS(self):
        """Say which methods a path knows."""
        if self.request.path == TOKEN_PATH:
            return self._plain(b"", headers=b"Allow: OPTIONS, PUT\r\n")
        if self.request.path != "/*" and not self.imds.find(self.request.path):
            raise HTTPError(404)
        return self._plain(b"", headers=b"Allow: OPTIONS, GET, HEAD\r\n")

    def do_POST(self):
        """Refuse what the real service refuses with 403 (captured for POST and DELETE)."""
        raise HTTPError(403, "%s is not allowed" % self.request.method)

    do_DELETE = do_PATCH = do_TRACE = do_CONNECT = do_POST

    def _admit(self):
        """Let in who may ask: a known Host (DNS rebinding), a service that is on, a session token that is good."""
        request, imds = self.request, self.imds
        for host in request.hosts:
            if host not in imds.hosts:
                raise HTTPError(403, "host %s is not allowed; see allowed-hosts" % escaped(host)[:100])
        if not imds.enabled:
            raise HTTPError(403, "http-endpoint is disabled")
        if request.path.startswith(CONTAINER_PATH):
            self._authorize()
        elif not (request.method == "PUT" and request.path == TOKEN_PATH):
            self._check_token(request.fields.get(TOKEN_HEADER))

    def _check_token(self, token):
        """Ask for a session token where http-tokens is required; refuse a bad one everywhere: agents probe with one."""
        if token is None:
            if self.imds.token_required:
                raise HTTPError(401, "no session token, and http-tokens is required")
            return
        remaining = self.tokens.remaining(token)
        if remaining is None:
            raise HTTPError(401, "session token is expired or none of ours")
        self.ttl = b"X-Aws-Ec2-Metadata-Token-Ttl-Seconds: %d\r\n" % remaining

    def _authorize(self):
        wanted = self.imds.authorization
        given = self.request.fields.get("authorization", "")
        if wanted and not compare_digest(given.encode(), wanted.encode()):
            raise container_error(401, "AccessDenied", "the Authorization header is missing or wrong")

    def _leaf(self):
        """Return what is at the path, or raise what stands in its place."""
        path = self.request.path
        found = self.imds.find(path)
        if path == TOKEN_PATH:
            raise HTTPError(405, headers=b"Allow: OPTIONS, PUT\r\n")
        if found is None:
            if path.startswith(CONTAINER_PATH):
                raise container_error(404, "NotFound", "no such role")
            raise HTTPError(404)
        if self.code:
            return self._failure(400, self.code, FAULT_REASON)
        if isinstance(found, Leaf):
            return found
        leaf = found.leaf()
        if leaf:
            return aged(leaf, self.imds.clock()) if self.expired else leaf
        if found.rotation.pending and time.monotonic() < self._patient_until:
            raise Postponed(FETCH_POLL)
        return self._failure(503, "Failed", "the source of credentials for %s has none now; "
                             "the log of fake-metadata says why" % found.rotation.role)

    def _failure(self, container_status, code, message):
        """Return the document that stands in place of credentials; container endpoints have a status for it."""
        if self.request.path.startswith(CONTAINER_PATH):
            raise container_error(container_status, code, message)
        now = self.imds.clock()
        return Leaf(failure_document(code, message, now), modified=now)

    def _suffer(self):
        """Let the faults of the configuration strike; a delay first, which is over when the handler is asked again."""
        delay, self.delay = self.delay, 0
        if delay:
            raise Postponed(delay)
        for fault in self.faults:
            if fault.reset or fault.no_answer:
                raise Dropped(fault.reset)
            if fault.status:
                raise HTTPError(fault.status, FAULT_REASON)
            if fault.refuse_token:
                raise HTTPError(401, FAULT_REASON)
            self.code, self.expired = self.code or fault.code, self.expired or fault.expired

    def refusal(self, error):
        """Return the answer to a request that is refused."""
        self.status, self.reason = error.status, error.reason
        return self._plain(error.body.encode(), error.status, b"application/json", error.headers)

    def _found(self, leaf):
        return b"".join((b"HTTP/1.1 200 OK\r\n", self.ttl, leaf.head, self.clock.headers, self._connection(), b"\r\n"))

    def _plain(self, body, status=200, content_type=b"text/plain", headers=b""):
        """Return an answer with the headers, in the order of the real service's tokens and errors."""
        self.status, self.size = status, len(body)
        return b"".join((
            b"HTTP/1.1 %d %s\r\n" % (status, phrase(status).encode()), self.ttl, headers,
            b"Content-Length: %d\r\n" % len(body), self.clock.headers, self._connection(),
            b"Content-Type: %s\r\n\r\n" % content_type,
            b"" if self.request.method == "HEAD" else body))

    def _connection(self):
        if not self.persistent:
            return b"Connection: close\r\n"
        return b"" if self.request.minor else b"Connection: keep-alive\r\n"


# ---------------------------------------------------------------- server -----------------------

READ, WRITE = select.POLLIN, select.POLLOUT


class Connection:
    """One client: bytes received and not yet understood, bytes of answers not yet taken, and a deadline."""

    received = unsent = b""
    handler = None  # of the request that is being answered
    started = 0.0
    ending = ""  # "" or "after" the bytes unsent, or "linger": then read until the client has seen them
    asked = False  # 100 Continue was sent for the request at hand
    watched = 0  # for READ, WRITE or nothing, never for both

    def __init__(self, server, client, peer):
        self.server, self.socket, self.peer = server, client, peer
        self.deadline = self.idle_until = server.now + IDLE_SECONDS

    @property
    def idle(self):
        """True between two requests."""
        return not (self.received or self.unsent or self.handler)

    def readable(self):
        """Receive what has come, answer every request that is complete."""
        try:
            data = self.socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            self._watch(READ)
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif self.ending != "linger":
            if not self.received:
                self.deadline = min(self.server.now + REQUEST_SECONDS, self.idle_until)  # not moved by empty lines
            self.received += data
            self._advance()

    def writable(self):
        """Send more of the answers; go on with the requests when the client has taken them."""
        self._send(b"")
        if self.socket and not self.unsent:
            self._advance()

    def resume(self):
        """Go on where the connection had to wait: ask the handler of a postponed request again, or take its turn."""
        if self.handler:
            self._respond()
        if self.socket and not self.handler:
            self._advance()

    def expire(self):
        """End a connection whose deadline has passed, with a word if a request was begun and can be answered."""
        if self.received and not (self.unsent or self.handler or self.ending or self.server.stopping):
            self._refuse(HTTPError(408, "no whole request within %d s" % REQUEST_SECONDS))
        else:
            self.close()

    def finish(self):
        """Close after what is in flight, or has come and is not read yet; the server stops."""
        if self.idle:
            self.readable()
        if self.idle:
            self.close()
        else:
            self.deadline = min(self.deadline, self.server.now + STOP_SECONDS)

    def turn_away(self):
        """Refuse a client at once, without hearing what it wants."""
        handler = self.server.handle(broken_request(b""), 0)
        self._send(handler.refusal(HTTPError(503, "over %d connections" % self.server.limit)))
        self.server.log.request(self.peer, handler, 0)
        self.close()

    def close(self, reset=False):
        """Close the socket, with a reset if asked for."""
        if self.socket:
            self._watch(0)
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.socket.close()
            self.socket = self.handler = None
            self.server.connections.discard(self)

    def _advance(self):
        """Answer the requests received, in order, while the client takes the answers; after a few others take turns."""
        for _ in range(REQUESTS_PER_TURN):
            if not self._advance_by_one():
                break
        else:
            self._watch(0)
            self.server.call_later(0, self.resume)
            return
        if self.socket and not self.unsent and not self.handler:
            self._settle()

    def _advance_by_one(self):
        """Answer the next request; return whether there may be another one to answer now."""
        if self.received.startswith(b"\r\n"):  # RFC 9112, 2.2: an empty line before a request is ignored
            self.received = re.sub(rb"\A(?:\r\n)+", b"", self.received)
        if not self.received or self.received == b"\r" or self.ending:
            return False
        try:
            request, end = read_request(self.received)
        except HTTPError as error:
            self._refuse(error)
            return False
        if end is None:
            if request and request.expects and not self.asked:
                self.asked = True
                self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        self.received, self.asked, self.started = self.received[end:], False, time.monotonic()
        self.handler = self.server.handle(request, self.started)
        self._respond()
        return bool(self.received and self.socket) and not (self.handler or self.unsent)

    def _settle(self):
        """Wait for more of the client, or end what is to be ended."""
        if self.ending == "after":
            self.close()
            return
        if self.ending == "linger":
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()
                return
        self._watch(READ)

    def _respond(self):
        """Have the handler answer, now or later or never."""
        if self.server.stopping:
            self.handler.persistent = False
        try:
            answer = self.handler.respond()
        except Postponed as postponed:
            self._watch(0)
            self.deadline = self._latest()
            self.server.call_later(*postponed.args, self.resume)
            return
        except Dropped as dropped:
            self._drop(*dropped.args)
            return
        handler, self.handler = self.handler, None
        self.idle_until = self.server.now + IDLE_SECONDS
        self.deadline = self.server.now + REQUEST_SECONDS if self.received else self.idle_until
        if not handler.persistent:
            self.ending = "after"
        spent = time.monotonic() - self.started
        if handler.hop_limit:
            self._send_with_hop_limit(answer, handler.hop_limit)
        else:
            self._send(answer)
        self.server.log.request(self.peer, handler, spent)  # while the client reads

    def _refuse(self, error):
        """Answer what cannot be read as a request, and close, since nobody knows where the next one would begin."""
        handler = self.server.handle(broken_request(self.received), 0)
        self.ending, self.received = "linger", b""
        self.deadline = self.server.now + LINGER_SECONDS
        answer = handler.refusal(error)
        self.server.log.request(self.peer, handler, 0)
        self._send(answer)
        if self.socket and not self.unsent:
            self._settle()

    def _drop(self, reset):
        """Leave a request without an answer (a fault of the configuration)."""
        self.handler.status, self.handler.reason = 0, FAULT_REASON + ": no answer"
        self.server.log.request(self.peer, self.handler, 0)
        if reset:
            self.close(reset=True)
        else:
            self.ending, self.deadline = "linger", self._latest()
            self._watch(READ)  # until the client gives up

    def _latest(self):
        """Return the deadline of what may take as long as it likes, unless the server stops."""
        return self.server.now + STOP_SECONDS if self.server.stopping else float("inf")

    def _send_with_hop_limit(self, answer, hops):
        """Send the answer to a token PUT with an IP TTL that keeps it within so many hops (EC2 User Guide)."""
        level, option = ((socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if self.socket.family == socket.AF_INET6
                         else (socket.IPPROTO_IP, socket.IP_TTL))
        self.socket.setsockopt(level, option, hops)
        self._send(answer)
        if self.socket:
            self.socket.setsockopt(level, option, -1)  # the default of the system

    def _send(self, data):
        """Send what the client takes, keep the rest."""
        begun, data = bool(self.unsent), self.unsent + data if self.unsent else data
        try:
            sent = self.socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:  # the client is gone
            self.close()
            return
        self.unsent = data[sent:]
        if self.unsent:
            if sent or not begun:
                self.deadline = self.server.now + REQUEST_SECONDS
            self._watch(WRITE)

    def _watch(self, events):
        if events != self.watched:
            self.watched = events
            self.server.watch(self.socket, events, self.writable if events == WRITE else self.readable)


class Server(HTTPServer):
    """One thread, one poll, no lock: complete requests go to a Handler, whatever has to wait is a timer.

    `imds` is what it serves, and may be replaced at any time. `post` may be called by other threads and by nobody else.
    """

    request_queue_size = 1024  # 200 clients at once: half of them unanswered with the usual 5

    def __init__(self, address, tokens, log, clock):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.imds, self.tokens, self.log, self.clock = None, tokens, log, clock
        self.connections, self.stopping, self.now = set(), False, time.monotonic()
        self._short_of_files = self._busy = False
        self.limit = FEW_CONNECTIONS if os.sysconf("SC_OPEN_MAX") >= 8 * FEW_CONNECTIONS else most_connections()
        self._timers, self._timer_numbers, self._posted = [], itertools.count(), collections.deque()
        # How many of its units of time make a second: where there is no epoll, as on Linux, poll counts milliseconds.
        self._poll, self._units = (select.epoll(), 1) if hasattr(select, "epoll") else (select.poll(), 1000)
        self._callbacks = {}  # by the number of a file
        self._wake_receiver, self.waker = socket.socketpair()
        for end in (self._wake_receiver, self.waker):
            end.setblocking(False)
        self.watch(self._wake_receiver, READ, self._woken)
        super().__init__(address, Handler, bind_and_activate=False)

    def server_bind(self):
        """Bind without asking a resolver for our name, as HTTPServer does: 10 s where there is none."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the connections inherit it
        self.socket.setblocking(False)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def server_activate(self):
        """Open the port."""
        super().server_activate()
        self.watch(self.socket, READ, self._accept)

    def serve_forever(self, poll_interval=None):
        """Serve until `stop`, and then until what is in flight is done."""
        self._tick()
        while not self.stopping or self.connections:
            self.serve_once()
        self.log.flush()

    def serve_once(self):
        """Serve what is ready, or wait for it or for the next timer.

        After an answer it looks a few times whether more has come before it sleeps: waking up takes longer than that.
        """
        wait = max(0, self._timers[0][0] - time.monotonic()) * self._units if self._timers else None
        for _ in range(LOOKS if self._busy and wait != 0 else 0):
            ready = self._poll.poll(0)
            if ready:
                break
        else:
            ready = self._poll.poll(wait)
        self._busy = bool(ready)
        self.now = time.monotonic()
        self.clock.tick()
        for number, _ in ready:
            callback = self._callbacks.get(number)
            if callback:  # not closed by what came before it in this round
                self._guarded(callback)
        while self._timers and self._timers[0][0] <= self.now:
            self._guarded(heappop(self._timers)[2])
        self.log.flush()

    def handle(self, request, started):
        """Return the Handler of a request."""
        return self.RequestHandlerClass(request, self.imds, self.tokens, self.clock, started + CLIENT_PATIENCE)

    def watch(self, watched, events, callback=None):
        """Have something called whenever a socket is ready for READ or WRITE; 0: no longer."""
        number = watched.fileno()
        known = number in self._callbacks
        if events:
            (self._poll.modify if known else self._poll.register)(number, events)
            self._callbacks[number] = callback
        elif known:
            self._poll.unregister(number)
            del self._callbacks[number]

    def call_later(self, seconds, callback):
        """Have something called in so many seconds."""
        heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), callback))

    def post(self, callback):
        """Have something called by the server's thread; for other threads, and for signals, of which a storm is one."""
        if callback not in self._posted:
            self._posted.append(callback)
        try:
            self.waker.send(b"\0")
        except OSError:  # full: it is awake anyhow; closed: it has stopped
            pass

    def stop(self):
        """Accept what has come so far and no more; finish what is in flight."""
        if not self.stopping:
            self.stopping = True
            self._accept()
            self.watch(self.socket, 0)
            self.socket.close()
            for connection in list(self.connections):
                connection.finish()

    def server_close(self):
        """Close all sockets."""
        for connection in list(self.connections):
            connection.close()
        super().server_close()
        self._wake_receiver.close()
        self.waker.close()
        if hasattr(self._poll, "close"):
            self._poll.close()

    def _guarded(self, callback):
        try:
            callback()
        except Exception as error:  # a defect costs its own connection, never the service
            self.log.say("internal error: %s" % place_of(error))
            connection = getattr(callback, "__self__", None)
            if isinstance(connection, Connection):
                connection.close()

    def _accept(self):
        for _ in range(ACCEPT_BATCH):
            try:
                number, address = self.socket._accept()  # what accept() wraps
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._pause()
                    return
                continue  # the client is gone already
            self._short_of_files = False
            client = socket.socket(self.address_family, self.socket_type, 0, number)
            client.setblocking(False)
            connection = Connection(self, client, address[0])
            if self._full():
                connection.turn_away()
                continue
            self.connections.add(connection)
            self._guarded(connection.readable)  # often the request has come along

    def _full(self):
        if len(self.connections) >= self.limit:
            self.limit = most_connections()
        return len(self.connections) >= self.limit

    def _pause(self):
        """Wait for open files instead of asking for the connection that cannot be had again and again."""
        if self.stopping:
            return
        if not self._short_of_files:
            self.log.say("out of open files: new connections have to wait")
        self._short_of_files = True
        self.watch(self.socket, 0)
        self.call_later(0.2, lambda: self.stopping or self.watch(self.socket, READ, self._accept))

    def _woken(self):
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass
        while self._posted:
            self._guarded(self._posted.popleft())

    def _tick(self):
        """Once a second: close what is overdue."""
        self.call_later(1, self._tick)
        for connection in list(self.connections):
            if connection.deadline < self.now:
                self._guarded(connection.expire)


def most_connections():
    """Return how many connections there may be; raise the soft limit of open files as far as that is of use."""
    try:
        import resource
    except ImportError:
        return 256 - RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft) - RESERVED_FILES)


# ---------------------------------------------------------------- log --------------------------

def complain(words):
    """Write one line to stderr."""
    try:
        os.write(2, ("fake-metadata: %s\n" % words).encode())
    except OSError:
        pass


class Log:
    """The log: whole lines, gathered and written once a round; a log that cannot be written never stops the service."""

    def __init__(self, clock, path=""):
        self._clock, self._path, self._file, self._regular = clock, "", None, False
        self._lines, self._backlog, self._lost = [], b"", 0
        self.reopen(path)

    def request(self, peer, handler, seconds):
        """Note a request that was answered, or refused for a reason."""
        request = handler.request
        self._lines.append('%s %s "%s" %d %d %.1fms "%s"%s\n' % (
            self._clock.stamp, peer, request.line, handler.status, handler.size, seconds * 1000, request.agent,
            handler.reason and " " + handler.reason))

    def say(self, words):
        """Note what people should know."""
        self._clock.tick()
        self._lines.append("%s fake-metadata: %s\n" % (
            self._clock.stamp, "".join(char if char.isprintable() else "?" for char in words)))

    def reopen(self, path):
        """Open the file anew, or go on with what there is and say so."""
        self.flush()
        if not path:
            self._use(None, path)
            return
        try:
            self._use(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640), path)
        except OSError as error:
            trouble = "cannot open the log %s: %s; logging goes on %s" % (
                path, error.strerror, "to " + self._path if self._path else "to stderr")
            self.say(trouble)
            if self._file is not None:
                complain(trouble)
        self.flush()

    def flush(self):
        """Write the lines gathered; keep them for later where the disk is full, up to a limit."""
        if not self._lines and not self._backlog:
            return
        data = self._backlog + "".join(self._lines).encode("utf-8", "replace")
        self._lines = []
        written = self._write(data)
        rest = data[written:]
        if len(rest) > MAX_LOG_BACKLOG:
            keep = rest.rfind(b"\n", 0, MAX_LOG_BACKLOG) + 1
            self._lost += rest.count(b"\n", keep)
            rest = rest[:keep]
        elif not rest and self._lost:
            lost, self._lost = self._lost, 0
            self.say("%d lines were lost while the log could not be written" % lost)
        self._backlog = rest

    def _use(self, file, path):
        former, self._file, self._path = self._file, file, path
        self._regular = file is not None and stat.S_ISREG(os.fstat(file).st_mode)
        if former is not None:
            os.close(former)

    def _write(self, data):
        """Return how many bytes could be written without waiting for anybody."""
        target, written = 2 if self._file is None else self._file, 0
        try:
            while written < len(data):
                if not self._regular and not _takes_more(target):  # a pipe or terminal that nobody reads
                    break
                written += os.write(target, data[written:written + (MAX_LOG_BACKLOG if self._regular else PIPE_BYTES)])
        except OSError:
            pass
        return written


def _takes_more(target):
    poll = select.poll()
    poll.register(target, select.POLLOUT)
    return any(events & select.POLLOUT and not events & select.POLLERR for _, events in poll.poll(0))


# ---------------------------------------------------------------- daemon and signals -----------

class Daemon:
    """The service as a process: its configuration, its credentials, its log, and what signals ask of it."""

    def __init__(self, options, environ=os.environ):
        self._options, self._environ, self._announced = options, environ, False
        self._config, self._box = load_config(options.config, environ), box_id()
        self.clock = Clock()
        self.log = Log(self.clock, options.log or self._config.server.log)
        self.address = self._config.server.bind or DEFAULT_BIND
        if options.address is not None:
            self.address = bind_address(options.address)
        self._rotations = {}
        self.server = Server(self.address, SessionTokens(session_token_key()), self.log, self.clock)
        self.server.imds = self._imds()
        self._signals = {signal.SIGHUP: self._reload, signal.SIGUSR1: self._renew,
                         signal.SIGTERM: self._stop, signal.SIGINT: self._stop}

    def run(self):
        """Serve until TERM or INT. Raises OSError if it cannot listen."""
        self._catch_signals()
        try:
            self._open()
            self.server.serve_forever()
            self.log.say("stopped")
        finally:
            for rotation in self._rotations.values():
                rotation.cancel(wait=1)
            self.server.server_close()
            self.log.flush()
            for number in self._signals:
                signal.signal(number, signal.SIG_IGN)  # what comes while Python ends must not look like a crash

    def dump(self):
        """Return every path with its value as it would be served, fetched where it must be."""
        self._catch_signals()
        imds, lines = self.server.imds, []
        self._first_credentials(86400)
        for rotation in self._rotations.values():
            rotation.cancel(wait=1)
        for path in imds.paths():
            found = imds.find(path)
            leaf = found if isinstance(found, Leaf) else found.leaf()
            text = leaf.body.decode("utf-8", "backslashreplace") if leaf else "(no credentials)"
            lines += [path] + ["    " + line for line in text.split("\n")]
        return "\n".join(lines)

    def _imds(self):
        """Make the service that the configuration describes, with the credentials that it has already."""
        try:
            self._rotations = make_rotations(self._config, self.log.say, self.server.post, self._rotations)
            return Imds(self._config, self._rotations, self._box, (self.address[0],))
        except ConfigError as error:
            raise ConfigError("%s: %s" % (self._options.config, error))

    def _catch_signals(self):
        """Have signals noted, and the server woken; what they ask for is done between two rounds."""
        for number, act in self._signals.items():
            signal.signal(number, lambda number, frame, act=act: self.server.post(act))

    def _open(self):
        """Take the port, fetch the first credentials, open the port and say so."""
        try:
            self.server.server_bind()
            self._first_credentials(FIRST_FETCH_WAIT)
            if self.server.stopping:
                return
            self.server.server_activate()
        except (OSError, UnicodeError) as error:
            raise OSError(getattr(error, "errno", None) or errno.EINVAL, "cannot listen on %s port %d: %s" % (
                *self.address, getattr(error, "strerror", None) or error))
        self.server.call_later(1, self._tick)
        self._announce()

    def _first_credentials(self, patience):
        """Fetch the first credentials and wait for them, so many seconds at most."""
        self.server.now = time.monotonic()
        for rotation in self._rotations.values():
            rotation.refresh()
        give_up = self.server.now + patience
        self.server.call_later(patience, lambda: None)  # wakes serve_once at the end of the wait
        while (any(rotation.pending for rotation in self._rotations.values()) and self.server.now < give_up
               and not self.server.stopping):
            self.server.serve_once()

    def _announce(self):
        host, port = self.server.server_address[:2]
        url = "http://%s:%d/" % ("[%s]" % host if ":" in host else host, port)
        self.log.say("%s started, process %d" % (VERSION, os.getpid()))
        if not (host.startswith("127.") or host == "::1"):
            self.log.say("bound to %s: whoever reaches this address gets the credentials" % host)
        self.log.say("listening on " + url)
        if self._options.log is None and not self._environ.get("NOTIFY_SOCKET"):
            complain("paste this: export AWS_EC2_METADATA_SERVICE_ENDPOINT=%s" % url)
        self.log.flush()
        self._announced = True
        self._tell_supervisor("READY=1")

    def _tell_supervisor(self, message):
        if self._announced:  # before that it would take us for started
            notify(message, self._environ)

    def _tick(self):
        self.server.call_later(1, self._tick)
        for rotation in self._rotations.values():
            rotation.tick()

    def _reload(self):
        """Reopen the log and take the configuration as it is now; a bad one is reported and the old one stays."""
        self._tell_supervisor("RELOADING=1")
        former = self._config, self._rotations
        try:
            self._config = load_config(self._options.config, self._environ)
            imds = self._imds()
        except (ConfigError, OSError) as error:
            self._config, self._rotations = former
            self.log.reopen(self._options.log or self._config.server.log)
            self.log.say("not reloaded, the old configuration stays: %s" % error)
        else:
            self._adopt(imds, former[1])
        self._tell_supervisor("READY=1")

    def _adopt(self, imds, former):
        self.server.imds = imds
        for role, rotation in former.items():
            if self._rotations.get(role) is not rotation:
                rotation.cancel()
        for role, rotation in self._rotations.items():
            if former.get(role) is not rotation:
                rotation.refresh()
        self.log.reopen(self._options.log or self._config.server.log)
        self.log.say("reloaded: log reopened, %s" % (
            "configuration read" if self._options.config else "no configuration to read"))
        bind = self._config.server.bind
        if bind and not self._options.address and bind != self.address:
            self.log.say("bind changed: takes effect at the next restart")

    def _renew(self):
        """Make new credentials of all roles now."""
        self.log.say("new credentials asked for")
        for rotation in self._rotations.values():
            rotation.refresh()

    def _stop(self):
        if not self.server.stopping:
            self._tell_supervisor("STOPPING=1")
            self.log.say("stopping")
            self.server.stop()


def notify(message, environ=os.environ):
    """Tell the supervisor (sd_notify protocol: systemd, start-stop-daemon --notify-await), if there is one."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        messenger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            messenger.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        finally:
            messenger.close()
    except OSError:  # nobody listens any more
        pass


# ---------------------------------------------------------------- main -------------------------

def fill_standard_files():
    """Open /dev/null where stdin, stdout or stderr are closed: a socket of ours would get what is written there."""
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            return


USAGE = """usage: fake_metadata.py [OPTIONS] [HOST | HOST:PORT]

Fake EC2 instance metadata service for a development box; listens on 127.0.0.1:8000 unless told otherwise.

  --config FILE   read this configuration; without it nothing is read
  --log FILE      log to this file; without it to stderr
  --test-config   check the configuration, exit 0 or 1
  --dump          print every path and value as they would be served
  --version       print the version
  --help          print this
"""


class Options:
    """What a command line asks for; by hand, since argparse takes 6 ms of each start. Raises ValueError."""

    def __init__(self, arguments):
        self.config = self.log = self.address = None
        self.action = "run"
        rest = iter(arguments)
        for word in rest:
            name, equals, value = word.partition("=")
            if name in ("--config", "--log"):
                setattr(self, name[2:], value if equals else next(rest, ""))
                if not getattr(self, name[2:]):
                    raise ValueError("%s needs a file" % name)
            elif word in ("--test-config", "--dump", "--version", "--help", "-h"):
                self.action = word.lstrip("-")
            elif word.startswith("-") or self.address is not None:
                raise ValueError("%s is not understood" % word)
            else:
                self.address = word


def main(arguments=None):
    """Run the command line; return its exit code."""
    fill_standard_files()
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
    except ValueError as error:
        sys.stderr.write("%s\nfake-metadata: %s\n" % (USAGE, error))
        return 2
    if options.action in ("help", "h", "version"):
        sys.stdout.write("fake-metadata %s\n" % VERSION if options.action == "version" else USAGE)
        return 0
    try:
        if options.action != "run":
            options.log = os.devnull
        daemon = Daemon(options)
        if options.action == "test-config":
            print("%s: configuration ok" % (options.config or "no file"))
        elif options.action == "dump":
            sys.stdout.buffer.write(daemon.dump().encode() + b"\n")
        else:
            daemon.run()
        return 0
    except (ConfigError, ValueError, OSError) as error:
        complain(getattr(error, "strerror", None) or str(error))
        notify("ERRNO=%d" % abs(getattr(error, "errno", None) or errno.EINVAL))  # those of a resolver are negative
    return 1


if __name__ == "__main__":
    sys.exit(main())
