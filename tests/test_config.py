"""The configuration: what is taken, what is refused, and what an error tells."""
import concurrent.futures
import os
import re
import subprocess
import sys

import pytest

import fake_metadata
from fake_metadata import ConfigError, load_config
from service import PROGRAM, wait_for

SECRET = "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbQeThWmZq4t7"
STATIC = "[credentials]\nsource = static\naccess-key-id = AKIAIOSFODNN7EXAMPLE\n"

DEFAULTS = [
    ("server", "bind", [("127.0.0.1", 8000)]),
    ("server", "log", ""),
    ("server", "allowed-hosts", []),
    ("metadata-options", "http-tokens", "optional"),
    ("metadata-options", "http-endpoint", "enabled"),
    ("metadata-options", "http-put-response-hop-limit", 2),
    ("metadata-options", "instance-metadata-tags", "disabled"),
    ("instance", "instance-id", None),
    ("instance", "instance-type", "t3.micro"),
    ("instance", "availability-zone", "us-east-1a"),
    ("instance", "account-id", "123456789012"),
    ("instance", "key-name", ""),
    ("credentials", "role", "BaseIAMRole"),
    ("credentials", "source", "generate"),
    ("credentials", "lifetime", 21600),
    ("credentials", "timeout", 30),
    ("credentials", "extended", "no"),
    ("container", "authorization-token", ""),
    ("user-data", "text", ""),
    ("events", "spot-interruption", ""),
]

GOOD = [
    ("server", "bind", "127.0.0.1", [("127.0.0.1", 8000)]),
    ("server", "bind", "0.0.0.0:80", [("0.0.0.0", 80)]),
    ("server", "bind", "localhost:0", [("localhost", 0)]),
    ("server", "bind", "::1", [("::1", 8000)]),
    ("server", "bind", "[::1]", [("::1", 8000)]),
    ("server", "bind", "[fd00:ec2::254]:80", [("fd00:ec2::254", 80)]),
    ("server", "bind", "127.0.0.1, [::1]:80,127.0.0.1:8000",
     [("127.0.0.1", 8000), ("::1", 80)]),
    ("server", "addresses", "169.254.169.254, fd00:ec2::23", ["169.254.169.254", "fd00:ec2::23"]),
    ("metadata-options", "http-protocol-ipv6", "disabled", "disabled"),
    ("server", "bind", "127.0.0.1:65535", [("127.0.0.1", 65535)]),
    ("server", "log", "/mnt/logs/fake-metadata/server.log", "/mnt/logs/fake-metadata/server.log"),
    ("server", "allowed-hosts", "imds.example.com, box,10.0.0.7",
     ["imds.example.com", "box", "10.0.0.7"]),
    ("metadata-options", "http-tokens", "required", "required"),
    ("metadata-options", "http-endpoint", "disabled", "disabled"),
    ("metadata-options", "http-put-response-hop-limit", "64", 64),
    ("instance", "instance-id", "i-0123456789abcdef0", "i-0123456789abcdef0"),
    ("instance", "instance-id", "i-1234abcd", "i-1234abcd"),
    ("instance", "instance-type", "m7gd.16xlarge", "m7gd.16xlarge"),
    ("instance", "instance-type", "u-12tb1.112xlarge", "u-12tb1.112xlarge"),
    ("instance", "instance-life-cycle", "capacity-block", "capacity-block"),
    ("instance", "architecture", "arm64", "arm64"),
    ("instance", "account-id", "000000000001", "000000000001"),
    ("instance", "availability-zone", "eu-central-1b", "eu-central-1b"),
    ("instance", "availability-zone", "us-gov-west-1a", "us-gov-west-1a"),
    ("instance", "availability-zone", "cn-northwest-1c", "cn-northwest-1c"),
    ("instance", "availability-zone", "us-west-2-lax-1a", "us-west-2-lax-1a"),
    ("instance", "availability-zone", "us-east-1-wl1-bos-wlz-1", "us-east-1-wl1-bos-wlz-1"),
    ("instance", "availability-zone-id", "use1-az6", "use1-az6"),
    ("instance", "availability-zone-id", "usw2-lax1-az1", "usw2-lax1-az1"),
    ("instance", "availability-zone-id", "use1-wl1-bos-wlz1", "use1-wl1-bos-wlz1"),
    ("instance", "launch-time", "2026-12-01T08:00:00Z", 1796112000),
    ("instance", "launch-time", "2026-12-01T08:00:00.999Z", 1796112000),
    ("instance", "launch-time", "2026-12-01T09:30:00+01:30", 1796112000),
    ("instance", "key-name", "my key", "my key"),
    ("instance", "public-key", "ssh-ed25519 AAAAC3Nza my key", ["ssh-ed25519 AAAAC3Nza my key"]),
    ("instance", "public-key", "ssh-ed25519 AAAA a\n  ssh-rsa AAAB b",
     ["ssh-ed25519 AAAA a", "ssh-rsa AAAB b"]),
    ("instance", "product-codes", "3iplms73etrdhxdepv72l6ywj",
     ["3iplms73etrdhxdepv72l6ywj"]),
    ("instance", "root-device", "/dev/sda1", "/dev/sda1"),
    ("instance", "ebs-volumes", "sdf, ebs4=sdg", [("", "sdf"), ("4", "sdg")]),
    ("instance", "security-groups", 'default, "web, db"', ["default", "web, db"]),
    ("instance", "local-hostname", "a.my.domain. other.domain", "a.my.domain. other.domain"),
    ("instance", "vpc-ipv6-cidr-blocks", "2001:db8:0:0:0:0:0:0/56", ["2001:db8::/56"]),
    ("instance", "instance-profile", "/a/path/name", "/a/path/name"),
    ("interface eth1", "device-number", "0", 0),
    ("role Build", "path", "/2021-03-23/meta-data/x/, /y", ["/latest/meta-data/x", "/y"]),
    ("instance", "local-ipv4", "10.0.0.5, 10.0.0.6", ["10.0.0.5", "10.0.0.6"]),
    ("instance", "local-ipv4", "", []),
    ("instance", "public-ipv4", "", []),
    ("instance", "vpc-ipv4-cidr-blocks", "", []),
    ("instance", "ipv6", "2001:DB8:0:0::2", ["2001:db8::2"]),
    ("instance", "mac", "0e:ff:d5:40:fe:7d", "0e:ff:d5:40:fe:7d"),
    ("instance", "security-groups", "default, web servers", ["default", "web servers"]),
    ("instance", "subnet-ipv4-cidr-block", "10.0.0.0/20", "10.0.0.0/20"),
    ("instance", "ipv6-prefix", "2001:db8:0:1::/80", ["2001:db8:0:1::/80"]),
    ("interface eth1", "device-number", "3", 3),
    ("interface eth1", "interface-id", "eni-0123456789abcdef0", "eni-0123456789abcdef0"),
    ("credentials", "role", "", ""),
    ("credentials", "role", "my+role=of,the.team@home-1_2", "my+role=of,the.team@home-1_2"),
    ("credentials", "lifetime", "1s", 1),
    ("credentials", "lifetime", "7d", 604800),
    ("credentials", "lifetime", "90m", 5400),
    ("credentials", "timeout", "1500ms", 1.5),
    ("credentials", "extended", "yes", "yes"),
    ("role build", "lifetime", "1h", 3600),
    ("container", "authorization-token", "Basic c2VjcmV0", "Basic c2VjcmV0"),
    ("tags", "Name", "my box", "my box"),
    ("tags", "team:cost-center@2026", "", ""),
    ("metadata", "placement/host-id", "h-0123", "h-0123"),
    ("metadata", "/managed-ssh-keys/signer-cert/", "text", "text"),
    ("metadata", "/v4/0123/task", "{}", "{}"),
    ("user-data", "text", "#!/bin/sh\n  echo hello", "#!/bin/sh\necho hello"),
    ("user-data", "base64", "aGVs\n bG8=", b"hello"),
]

BAD = [  # section, key, value, what the error must say of what would be right
    ("server", "bind", "nowhere at all", "HOST:PORT"),
    ("server", "bind", "127.0.0.1:65536", "HOST:PORT"),
    ("server", "bind", "127.0.0.1:80, nowhere at all", "HOST:PORT"),
    ("server", "bind", "", "HOST:PORT"),
    ("server", "addresses", "127.0.0.1", "169.254.170.23"),
    ("metadata-options", "http-protocol-ipv6", "yes", "enabled"),
    ("server", "bind", "127.0.0.1:http", "HOST:PORT"),
    ("server", "bind", "[::1]8000", "[IPV6]:PORT"),
    ("server", "bind", "[::1", "[IPV6]:PORT"),
    ("server", "bind", "http://127.0.0.1/", "HOST:PORT"),
    ("server", "allowed-hosts", "good.example.com, not/good", "imds.example.com"),
    ("server", "allowed-hosts", "one,,two", "imds.example.com"),
    ("metadata-options", "http-tokens", "maybe", "optional, required"),
    ("metadata-options", "http-tokens", "Required", "optional, required"),
    ("metadata-options", "http-tokens", "", "optional, required"),
    ("metadata-options", "http-endpoint", "off", "enabled, disabled"),
    ("metadata-options", "instance-metadata-tags", "yes", "enabled, disabled"),
    ("metadata-options", "http-put-response-hop-limit", "0", "from 1 to 64"),
    ("metadata-options", "http-put-response-hop-limit", "65", "from 1 to 64"),
    ("metadata-options", "http-put-response-hop-limit", "+1", "from 1 to 64"),
    ("metadata-options", "http-put-response-hop-limit", "1.0", "from 1 to 64"),
    ("metadata-options", "http-put-response-hop-limit", "\u0662", "from 1 to 64"),
    ("instance", "instance-id", "i-123", "i-0123456789abcdef0"),
    ("instance", "instance-id", "I-0123456789ABCDEF0", "i-0123456789abcdef0"),
    ("instance", "instance-id", "", "i-0123456789abcdef0"),
    ("instance", "ami-id", "i-0123456789abcdef0", "ami-0123456789abcdef0"),
    ("instance", "instance-type", "huge", "t3.micro"),
    ("instance", "instance-life-cycle", "eternal", "on-demand, spot"),
    ("instance", "architecture", "vax", "x86_64"),
    ("instance", "account-id", "1234", "123456789012"),
    ("instance", "account-id", "1234-5678-9012", "123456789012"),
    ("instance", "availability-zone", "us-east-1", "us-east-1a"),
    ("instance", "availability-zone", "a", "us-east-1a"),
    ("instance", "availability-zone", "us-east-1A", "us-east-1a"),
    ("instance", "availability-zone", "moon-base-1a", "us-east-1a"),
    ("instance", "availability-zone-id", "us-east-1a", "use1-az1"),
    ("instance", "launch-time", "yesterday", "2026-12-01T08:00:00Z"),
    ("instance", "launch-time", "2026-13-01T08:00:00Z", "2026-12-01T08:00:00Z"),
    ("instance", "launch-time", "2026-12-01T08:00:00", "2026-12-01T08:00:00Z"),
    ("instance", "launch-time", "1796112000", "2026-12-01T08:00:00Z"),
    ("instance", "public-key", "not a key", "ssh-ed25519"),
    ("instance", "root-device", "xvda", "/dev/xvda"),
    ("instance", "ebs-volumes", "/dev/sdf", "sdf"),
    ("instance", "local-ipv4", "10.0.0.256", "IPv4"),
    ("instance", "local-ipv4", "10.0.0", "IPv4"),
    ("instance", "local-ipv4", "::1", "IPv4"),
    ("instance", "public-ipv4", "example.com", "IPv4"),
    ("instance", "ipv6", "10.0.0.1", "IPv6"),
    ("instance", "ipv6", "2001:db8:::1", "IPv6"),
    ("instance", "mac", "0E:FF:D5:40:FE:7D", "0e:ff:d5:40:fe:7d"),
    ("instance", "mac", "0e-ff-d5-40-fe-7d", "0e:ff:d5:40:fe:7d"),
    ("instance", "local-hostname", "two  blanks", "example.com"),
    ("instance", "subnet-ipv4-cidr-block", "10.0.0.5/20", "10.0.0.0/20"),
    ("instance", "subnet-ipv4-cidr-block", "10.0.0.0", "10.0.0.0/32"),
    ("instance", "subnet-ipv4-cidr-block", "10.0.0.0/33", "10.0.0.0/16"),
    ("instance", "subnet-ipv4-cidr-block", "10.0.0.0/255.255.0.0", "10.0.0.0/16"),
    ("instance", "subnet-ipv4-cidr-block", "2001:db8::/32", "10.0.0.0/16"),
    ("instance", "subnet-ipv6-cidr-blocks", "2001:db8::/129", "2001:db8::/56"),
    ("instance", "subnet-ipv6-cidr-blocks", "2001:DB8::1/56", "2001:db8::/56"),
    ("instance", "ebs-volumes", "ephemeral1=sdf", "ebs2=sdf"),
    ("instance", "security-groups", 'default, "web', "quotes"),
    ("instance", "security-groups", 'default, "web" db', "quotes"),
    ("instance", "instance-profile", "a name", "ARN"),
    ("role Build", "path", "latest/x", "/latest/meta-data"),
    ("role Build", "path", "/latest/x?y", "/latest/meta-data"),
    ("role Build", "form", "ecs", "container"),
    ("faults", "x", "/* status 500 message m", "code"),
    ("faults", "x", '/* code X message "', "quotation"),
    ("instance", "ipv6", "fe80::1%eth0", "IPv6"),
    ("interface eth1", "local-ipv4", "10.0.0.256", "IPv4"),
    ("interface eth1", "device-number", "65", "from 0 to 64"),
    ("interface eth1", "mac", "none", "0e:ff:d5:40:fe:7d"),
    ("credentials", "role", "two words", "BaseIAMRole"),
    ("credentials", "role", "a/path/to/role", "BaseIAMRole"),
    ("credentials", "role", "r" * 65, "BaseIAMRole"),
    ("credentials", "source", "vault", "generate, static, profile, process"),
    ("credentials", "lifetime", "6", "90s"),
    ("credentials", "lifetime", "6 h", "90s"),
    ("credentials", "lifetime", "-5m", "90s"),
    ("credentials", "lifetime", "1.5h", "90s"),
    ("credentials", "lifetime", "0s", "1s to 7d"),
    ("credentials", "lifetime", "8d", "1s to 7d"),
    ("credentials", "lifetime", "999ms", "1s to 7d"),
    ("credentials", "timeout", "soon", "90s"),
    ("credentials", "extended", "true", "yes, no"),
    ("role build", "source", "vault", "generate, static, profile, process"),
    ("role build", "lifetime", "0s", "1s to 7d"),
    ("container", "authorization-token", "with a \x07 bell", "invalid value"),
    ("tags", "a/b", "c", "letters, digits"),
    ("tags", "_index", "c", "letters, digits"),
    ("tags", "..", "c", "letters, digits"),
    ("tags", "k" * 129, "c", "letters, digits"),
    ("metadata", "a//b", "c", "placement/host-id"),
    ("metadata", "a b", "c", "placement/host-id"),
    ("metadata", "caf\u00e9", "c", "placement/host-id"),
    ("metadata", "latest/dynamic/x", "c", "leading slash"),
    ("metadata", "2021-07-15/meta-data/x", "c", "leading slash"),
    ("metadata", "dynamic/x", "c", "leading slash"),
    ("metadata", "meta-data/x", "c", "leading slash"),
    ("metadata", "/latest", "c", "a path below it"),
    ("metadata", "/1.0/", "c", "a path below it"),
    ("metadata", "/latest/api/token", "c", "another path"),
    ("metadata", "/v1/credentials", "c", "another path"),
    ("metadata", "/v2/credentials/BaseIAMRole", "c", "another path"),
    ("metadata", "/creds", "c", "another path"),
    ("metadata", "/role/Reporting", "c", "another path"),
    ("metadata", "/openstack/../x", "c", "placement/host-id"),
    ("user-data", "base64", "aGVsbG8", "base64 FILE"),
    ("user-data", "base64", "#!/bin/sh", "base64 FILE"),
    ("events", "spot-interruption", "+90s", "+90s terminate"),
    ("events", "spot-interruption", "+90s explode", "terminate, stop, hibernate"),
    ("events", "spot-interruption", "terminate +90s", "+90s"),
    ("events", "spot-interruption", "90s terminate", "+90s"),
    ("events", "rebalance-recommendation", "soon", "+90s"),
    ("events", "rebalance-recommendation", "+60s terminate", "90s"),
    ("events", "scheduled-maintenance", "+30s system-reboot", "2026-12-01T08:00:00Z"),
    ("events", "scheduled-maintenance",
     "+30s coffee-break 2026-12-01T08:00:00Z 2026-12-01T10:00:00Z", "system-reboot"),
    ("events", "scheduled-maintenance", "+30s system-reboot today 2026-12-01T10:00:00Z",
     "2026-12-01T08:00:00Z"),
    ("events", "scheduled-maintenance", "+30s system-reboot +1h +2h postponed +3h",
     "completed, canceled"),
    ("events", "scheduled-maintenance", "+30s system-reboot +1h +2h,", "2026-12-01T08:00:00Z"),
    ("events", "target-lifecycle-state", "Asleep", "InService"),
    ("events", "target-lifecycle-state", "InService, Terminated +120s", "+90s"),
    ("events", "target-lifecycle-state", "+1s InService now", "InService, +120s Terminated"),
    ("faults", "x", "latest/* status 503", "/latest/meta-data/*"),
    ("faults", "x", "/latest/*", "status"),
    ("faults", "x", "", "/latest/meta-data/*"),
    ("faults", "x", "/latest/* status", "from 400 to 599"),
    ("faults", "x", "/latest/* status 200", "from 400 to 599"),
    ("faults", "x", "/latest/* status 600", "from 400 to 599"),
    ("faults", "x", "/latest/* explode", "delay, reset, no-answer, status"),
    ("faults", "x", "/latest/* delay", "90s"),
    ("faults", "x", "/latest/* reset times 0", "from 1 to 999999999"),
    ("faults", "x", "/latest/* reset times many", "from 1 to 999999999"),
    ("faults", "x", "/latest/* reset probability 0", "0.2"),
    ("faults", "x", "/latest/* reset probability 1.5", "0.2"),
    ("faults", "x", "/latest/* reset probability nan", "0.2"),
    ("faults", "x", "/latest/* reset from now", "+90s"),
    ("faults", "x", "/latest/* reset for ever", "90s"),
    ("faults", "x", "/latest/* status 503 status 500", "status is set twice"),
    ("faults", "x", "/latest/* reset from +1s until +2s", "unknown word until"),
    ("faults", "x", "/latest/* code", "AssumeRoleUnauthorizedAccess"),
]

UNKNOWN = [  # text, what the error must say
    ("[severs]\n", "[severs]: unknown section; did you mean server?"),
    ("[Instance]\n", "[Instance]: unknown section; did you mean instance?"),
    ("[DEFAULT]\nrole = x\n", "[DEFAULT]: unknown section"),
    ("[interfaces eth1]\n", "[interfaces eth1]: unknown section; did you mean interface NAME?"),
    ("[server x]\n", "[server x]: unknown section"),
    ("[zzz]\n", "[zzz]: unknown section; use one of: "),
    ("[interface]\n", "[interface]"),
    ("[role]\n", "[role]"),
    ("[server]\nallowed-host = x\n",
     "[server] allowed-host: unknown key; did you mean allowed-hosts?"),
    ("[server]\nport = 80\n",
     "[server] port: unknown key; write bind = 127.0.0.1:8000 in [server]"),
    ("[server]\nzzz = 80\n",
     "[server] zzz: unknown key; use one of: addresses, allowed-hosts, bind, error-bodies, log"),
    ("[instance]\ninstance_id = i-1234abcd\n",
     "[instance] instance_id: unknown key; did you mean instance-id?"),
    ("[instance]\nInstance-Id = i-1234abcd\n",
     "[instance] Instance-Id: unknown key; did you mean instance-id?"),
    ("[instance]\nregion = us-east-1\n",
     "[instance] region: unknown key; write availability-zone = eu-central-1a, which sets "),
    ("[instance]\nrole = x\n",
     "[instance] role: unknown key; it belongs in [credentials]"),
    ("[instance]\nsource = static\n",
     "[instance] source: unknown key; it belongs in [credentials] or [role NAME]"),
    ("[interface eth1]\ninstance-id = i-1234abcd\n",
     "[interface eth1] instance-id: unknown key; it belongs in [instance]"),
    ("[role build]\nrole = x\n", "[role build] role: unknown key"),
    ("[events]\nspot-interuption = +1s stop\n",
     "[events] spot-interuption: unknown key; did you mean spot-interruption?"),
]

CONFLICTS = [  # text, section and key that the error must name
    ("[credentials]\nsource = static\n", "[credentials] access-key-id: "),
    (STATIC, "[credentials] secret-access-key: "),
    ("[credentials]\nsource = process\n", "[credentials] command: "),
    ("[role build]\nsource = process\n", "[role build] command: "),
    ("[role BaseIAMRole]\n", "[role BaseIAMRole]"),
    ("[role two words]\n", "[role two words]"),
    ("[role a]\n[role  a]\n", "[role  a]"),
    ("[instance]\nmac = 0e:00:00:00:00:01\n[interface eth1]\nmac = 0e:00:00:00:00:01\n",
     "[interface eth1] mac: "),
    ("[server]\nlog = /a\nlog = /b\n", "[server] log: "),
    ("[instance]\npublic-key = ssh-ed25519 AAAAC3Nza\n", "[instance] public-key: "),
    ("[metadata]\nplacement = here\n", "[metadata] placement: "),
    ("[metadata]\ninstance-id/part = x\n", "[metadata] instance-id"),
    ("[metadata]\nown = x\nown/below = y\n", "[metadata] own: "),
    ("[metadata]\n/latest/meta-data = x\n", "[metadata] /latest/meta-data: "),
    ("[metadata]\n/latest/own/below = x\n/latest/own = y\n", "[metadata] /latest/own: "),
    ("[metadata]\nspot = x\n[events]\nspot-interruption = +90s terminate\n", "[metadata] spot: "),
    ("[user-data]\ntext = a\nfile = /dev/null\n", "[user-data] "),
    ("[user-data]\ntext = a\nbase64 = YQ==\n", "[user-data] base64: text is set as well"),
    ("[user-data]\nbase64 = %s\n" % ("YWFh" * 5462), "[user-data] base64: larger than the"),
    ("[metadata]\n/a = x\n[role R]\npath = /a\nform = container\n", "[metadata] /a: "),
    ("[metadata]\n/a/b = x\n[role R]\npath = /a\n", "[role R] path: "),
    ("[metadata]\n/a = x\n/a/b = y\n", "[metadata] /a: "),
    ("[user-data]\nfile = /nowhere/user-data\n", "[user-data] file: "),
    ("[user-data]\nfile = /\n", "[user-data] file: "),
    ("[user-data]\ntext = %s\n" % ("x" * 16385), "[user-data] "),
]

FORMER = [  # key and value that [instance] once took, the line of [metadata] that replaces it
    ("ami-launch-index = 3", "ami-launch-index = 3"),
    ("ami-manifest-path = a/b.xml", "ami-manifest-path = a/b.xml"),
    ("ancestor-ami-ids = ami-11111111", "ancestor-ami-ids = ami-11111111"),
    ("hibernation = true", "hibernation/configured = true"),
    ("host-id = h-0123456789abcdef0", "placement/host-id = h-0123456789abcdef0"),
    ("instance-action = shutdown", "instance-action = shutdown"),
    ("monitoring = enabled", "/latest/dynamic/fws/instance-monitoring = enabled"),
    ("partition-number = 7", "placement/partition-number = 7"),
    ("placement-group = my group", "placement/group-name = my group"),
    ("swap-device = sdb", "block-device-mapping/swap = sdb"),
]

LEAKS = [
    STATIC + "secret-access-key = %s %s\n" % (SECRET, SECRET),
    STATIC + "secret-access-key = %s\u00e9\n" % SECRET,
    STATIC + "secret-access-key = x\n  %s\n" % SECRET,
    STATIC + "secret-access-key = %s\nsecret-access-key = %s\n" % (SECRET, SECRET),
    STATIC + "secret-acces-key = %s\n" % SECRET,
    STATIC + "secret-access-key\n%s\n" % SECRET,
    STATIC + "secret-access-key %s\n" % SECRET,
    STATIC + "session-token =\n%s==\n" % SECRET,
    STATIC + "%s= x\n%s= x\n" % (SECRET, SECRET),
    "[credentials]\nsource = static\naccess-key-id = %s\n" % SECRET,
    "[credentials]\nrole = %s\n" % SECRET,
    "[container]\nauthorization-token = %s\x07\n" % SECRET,
    "[container\nauthorization-token = %s\n" % SECRET,
    "authorization-token = %s\n" % SECRET,
    SECRET + "\n",
]


@pytest.mark.parametrize("section, key, value", DEFAULTS)
def test_default(load, section, key, value):
    """What is not configured has its default."""
    assert load()[section][key] == value


def test_no_file_means_the_defaults(load):
    """Without a file the configuration is that of an empty one."""
    assert load_config(environ={}) == load("")


@pytest.mark.parametrize("section, key, text, value", GOOD)
def test_good_value(load, section, key, text, value):
    """A value in the right form is taken."""
    assert load("[%s]\n%s = %s\n" % (section, key, text))[section][key] == value


@pytest.mark.parametrize("section, key, text, right", BAD)
def test_bad_value(check, section, key, text, right):
    """A bad value ends with 1, names file, section and key, and says what would be right."""
    code, said = check("[%s]\n%s = %s\n" % (section, key, text))

    assert code == 1
    shown = fake_metadata.shown_key(key)
    assert said.startswith("fake-metadata: FILE:2: [%s] %s: " % (section, shown))
    assert right in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text, error", UNKNOWN)
def test_unknown_name(check, text, error):
    """An unknown section or key is an error that tells the nearest known name."""
    code, said = check(text)

    assert code == 1
    assert re.match("fake-metadata: FILE:[12]: " + re.escape(error), said)


@pytest.mark.parametrize("text, place", CONFLICTS)
def test_conflict(check, text, place):
    """Values that cannot go together are an error that names file, section and key."""
    code, said = check(text)

    assert code == 1
    assert re.match("fake-metadata: FILE:[1-9]: " + re.escape(place), said)
    assert said.count("\n") == 1


@pytest.mark.parametrize("line, replacement", FORMER)
def test_former_key(check, make_metadata, line, replacement):
    """A key that is gone is refused with the line of [metadata] that replaces it, and does."""
    code, said = check("[instance]\n%s\n" % line)
    key, value = line.split(" = ")

    assert code == 1
    path = replacement.split(" = ")[0]
    assert said == ("fake-metadata: FILE:2: [instance] %s: no longer a key; "
                    "write in [metadata]: %s = the same value\n" % (key, path))
    full_path = path if path.startswith("/") else "/latest/meta-data/" + path
    assert make_metadata("[metadata]\n" + replacement).find(full_path).body == value.encode()


def test_former_key_with_a_list(check):
    """A list that stood in one line is one item a line in [metadata]."""
    _, said = check("[instance]\nancestor-ami-ids = ami-11111111, ami-22222222\n")

    assert "ancestor-ami-ids = the first value, and each further one on an indented line" in said


def test_all_defaults_are_those_that_a_parser_gives(load):
    """A default that is no fact to derive and not empty is what its parser would make of it."""
    for kind, keys in fake_metadata.SETTINGS.items():
        for key, (parser, default) in keys.items():
            if isinstance(default, str) and default:
                assert parser(default) == default, (kind, key)


@pytest.mark.parametrize("text", LEAKS)
def test_error_shows_no_secret(check, text):
    """An error shows no part of a secret, wherever it stands."""
    code, said = check(text)

    assert code == 1
    assert not any(SECRET[start:start + 8] in said for start in range(len(SECRET) - 7))


@pytest.mark.parametrize("text, error", [
    ("role = x\n", "FILE:1: a key before the first [section]"),
    ("[server]\n\"bind = x\n", "FILE:2: neither a [section]"),
    ("[server]\nlog = x\n[user-data]\n[server]\nlog = y\n",
     "FILE:5: [server] log: set twice, in lines 2 and 5"),
    ("[server]\n\nbind 127.0.0.1\n", "FILE:3: neither a [section]"),
    ("[]\n", "FILE:1: neither a [section]"),
    ("[server]\n= x\n", "FILE:2: neither a [section]"),
    ("[tags] Name = x\n", "FILE:1: neither a [section]"),
    ("[metadata]\n[x]y = z\n", "FILE:2: neither a [section]"),
    (b"[server]\nlog = \xff\n", "FILE: not UTF-8"),
    (b"\0\0\0\0", "FILE:1: neither"),
    pytest.param("[server]\na%sb\n" % (" " * 200000), "FILE:2: neither", id="blanks"),  # soon
])
def test_broken_file(check, text, error):
    """A file that is no configuration is one line of error."""
    code, said = check(text)

    assert code == 1
    assert error in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name, reason", [
    ("missing.conf", "No such file"), (".", "Is a directory")])
def test_unreadable_file(tmp_path, capfd, name, reason):
    """A configuration that cannot be read is named, with the reason."""
    path = str(tmp_path / name)

    assert fake_metadata.main(["--test-config", "--config", path]) == 1
    assert "%s: %s" % (path, reason) in capfd.readouterr().err


@pytest.mark.parametrize("text", [
    "", "\n\n", "# a comment\n; another\n", "[server]\n", "\ufeff[server]\nlog = x\n",
    "[server]\r\nlog = x\r\n", "[server]\n  log = x\n  bind = 127.0.0.1:0\n", "[server]\nlog=x",
    "[server]\nlog =\n", "[tags]\nName = a = b # c\n",
    "[interface eth1]\n[interface eth2]\n[role a]\n[role b]\n"])
def test_good_file(check, text):
    """Comments, blank lines, a byte order mark, CRLF and indented keys are fine."""
    code, said = check(text)

    assert code == 0
    assert "configuration ok" in said


def test_keys_keep_their_case(load):
    """Tags that differ in case only are two tags."""
    assert load("[tags]\nName = a\nname = b\n")["tags"] == {"Name": "a", "name": "b"}


def test_comment_behind_a_section(load):
    """A comment may stand behind the head of a section."""
    assert load("[tags] # those of the instance\na = b\n")["tags"] == {"a": "b"}


def test_percent_sign_is_a_character(load):
    """Nothing is interpolated into a value."""
    assert load("[tags]\na = 100%(b)s ${c}\n")["tags"]["a"] == "100%(b)s ${c}"




def test_all_mistakes_at_once(check):
    """All mistakes of a file are told, each with its line, in their order."""
    code, said = check("[instance]\nregion = eu-central-1\n[server]\nbind = 8000\ngarbage\n"
                       "[severs]\nx = y\n[credentials]\nsource = static\n"
                       "[faults]\nslow = /latest/* slowly\n[instance]\nregion = x\n")

    assert code == 1
    lines = said.replace("fake-metadata: FILE:", "").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["2", "[instance] region"],
        ["4", "[server] bind"],
        ["5", "neither a [section] nor key = value"],
        ["6", "[severs]"],
        ["8", "[credentials] access-key-id"],
        ["11", "[faults] slow"],
        ["13", "[instance] region"],
        ["13", "[instance] region"],
    ]
    assert lines[1].endswith("8000 is only a port; write 127.0.0.1:8000")


def test_bad_key_is_not_missing_too(check):
    """A key that a source needs, and that is wrong, is one mistake."""
    code, said = check(STATIC + "secret-access-key = not one word\n")

    assert code == 1
    assert said.startswith("fake-metadata: FILE:4: [credentials] secret-access-key: invalid value")
    assert said.count("\n") == 1


def test_many_mistakes(check):
    """Of very many mistakes the first are told, and how many more there are."""
    code, said = check("garbage\n" * 1000)

    assert code == 1
    assert said.count("\n") == fake_metadata.MAX_MISTAKES + 1
    assert said.endswith("and 980 more errors\n")


def test_mistakes_that_only_the_whole_shows(check):
    """Mistakes that show once all is read are told together, too."""
    code, said = check("[instance-identity]\ncertificate = /x\n[role two words]\n")

    assert code == 1
    assert said.startswith("fake-metadata: FILE:2: [instance-identity] certificate: ")
    assert "\nfake-metadata: FILE:3: [role two words]: " in said


def test_section_that_stands_twice(load):
    """A section that stands twice is one."""
    config = load("[role a]\nlifetime = 1h\n[tags]\na = 1\n[role a]\nsource = generate\n"
                  "[tags]\nb = 2\n[role a]\n")

    assert config["tags"] == {"a": "1", "b": "2"}
    assert config["role a"]["lifetime"] == 3600


@pytest.mark.parametrize("line, key, value", [
    ('"a=b" = c', "a=b", "c"),
    ('"a=b"=c=d', "a=b", "c=d"),
    ('"a:b" = c', "a:b", "c"),
    ("a:b = c", "a:b", "c"),
    ('"#a" = c', "#a", "c"),
    ('"#a=b:c#" = "d"', "#a=b:c#", '"d"'),
    ("a#b = c", "a#b", "c"),
    ('"plain" = c', "plain", "c"),
    ("a = b = c", "a", "b = c"),
    ("  a = b\n", "a", "b"),
    ("a =", "a", ""),
    ("a =\n  b\n    c", "a", "\nb\nc"),
    ("a = b\n  # no\n", "a", "b"),
    ("a = b\n  [c]\n  d = e", "a", "b\n[c]\nd = e"),
    ("a = b ; c", "a", "b ; c"),
    ("a\t=\tb\t\r", "a", "b"),
])
def test_lines(load, line, key, value):
    """A key in double quotes may have what would end it; a value goes on in deeper lines."""
    assert load("[tags]\n%s\n" % line)["tags"] == {key: value}


def test_tags_are_served_as_they_are_quoted(make_metadata):
    """A tag key with special characters is found by its path."""
    metadata = make_metadata("[metadata-options]\ninstance-metadata-tags = enabled\n[tags]\n"
                             '"a=b" = 1\n"#c:d" = 2\n')
    assert metadata.find("/latest/meta-data/tags/instance/a=b").body == b"1"
    assert metadata.find("/latest/meta-data/tags/instance/#c:d").body == b"2"


# Several sources.

@pytest.fixture
def load_all(tmp_path):
    """Load several texts, each as a file, and overrides."""
    def load_all(*texts, overrides=(), environ=None):
        files = []
        for number, text in enumerate(texts):
            path = tmp_path / ("%d.conf" % number)
            path.write_text(text)
            files.append(fake_metadata.ConfigFile(str(path)))
        return load_config(files, overrides, environ or {})
    return load_all


def test_later_file_wins_key_by_key(load_all):
    """Of several files the later one wins, key by key."""
    config = load_all("[tags]\na = 1\nb = 1\n[instance]\npublic-ipv4 = 203.0.113.1\n",
                      "[tags]\nb = 2\n[instance]\npublic-ipv4 =\n",
                      "[role x]\n")

    assert config["tags"] == {"a": "1", "b": "2"}
    assert config["instance"]["public-ipv4"] == []
    assert "role x" in config


def test_mistakes_of_several_files(load_all, tmp_path):
    """The mistakes of all files are told, each with its file."""
    with pytest.raises(ConfigError) as raised:
        load_all("[x]\n", "[server]\nbind = 8000\n", overrides=["y.z=1", "instance.region=x"])

    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "--set", "--set", "%s/0.conf:1" % tmp_path, "%s/1.conf:2" % tmp_path]


@pytest.mark.parametrize("text, section, key, value", [
    ("credentials.lifetime=1h", "credentials", "lifetime", 3600),
    ("tags.a.b=c.d", "tags", "a.b", "c.d"),
    ('tags."a=b"=c', "tags", "a=b", "c"),
    ("tags.a = b ", "tags", "a", "b"),
    ("tags.a=b=c", "tags", "a", "b=c"),
    ("tags.a=", "tags", "a", ""),
    ("role Reporting.lifetime=1h", "role Reporting", "lifetime", 3600),
    ("role a.b.lifetime=1h", "role a.b", "lifetime", 3600),
    ("role there.is.lifetime=1h", "role there.is", "lifetime", 3600),
    ("metadata./latest/dynamic/x.y=1", "metadata", "/latest/dynamic/x.y", "1"),
    ("metadata.placement/host-id=h-1", "metadata", "placement/host-id", "h-1"),
    ("user-data.text=a\nb", "user-data", "text", "a\nb"),
])
def test_override(load_all, text, section, key, value):
    """SECTION.KEY=VALUE wins over the files."""
    files = "[tags]\na = x\n[credentials]\nlifetime = 2h\n[role there.is]\n"

    assert load_all(files, overrides=[text])[section][key] == value


def test_later_override_wins(load_all):
    """Of two overrides the later one wins, and both over the environment."""
    config = load_all(overrides=["tags.a=1", "tags.a=2", "instance.public-ipv4=203.0.113.1"],
                      environ={"EC2_LOCAL_IPV4": "203.0.113.2"})

    assert config["tags"]["a"] == "2"
    assert config["instance"]["public-ipv4"] == ["203.0.113.1"]


@pytest.mark.parametrize("text, error", [
    ("tags", "not SECTION.KEY=VALUE"),
    ("tags=x", "tags: no such section; write SECTION.KEY with one of: server, "),
    ("nothing.a=x", "nothing.a: no such section; write SECTION.KEY with one of: server, "),
    ("tags.=x", "[tags]: no key"),
    ("instance.mac=x", "[instance] mac: "),
    ("=x", "write SECTION.KEY"),
    (".=x", "write SECTION.KEY"),
])
def test_bad_override(load_all, text, error):
    """What is no SECTION.KEY=VALUE is an error that says how to write it."""
    with pytest.raises(ConfigError) as raised:
        load_all(overrides=[text])
    assert str(raised.value).startswith("--set: ") and error in str(raised.value)


def test_texts_and_places(load_all, tmp_path):
    """A configuration knows how each key was written, and where."""
    config = load_all("[tags]\na = 1\n", "[tags]\na = 2\n", overrides=["tags.b=3"])

    assert config.texts == {"tags": {"a": "2", "b": "3"}}
    assert config.places["tags", "a"] == "%s/1.conf:2" % tmp_path
    assert config.places["tags", "b"] == "--set"


def run(*arguments, **options):
    """Run the program; return its exit status, stdout and stderr."""
    done = subprocess.run([sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=20, universal_newlines=True, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/proc/self/fd/0"])
def test_standard_input(name):
    """- and /dev/stdin are standard input."""
    assert run("--test-config", "--config", name, input="[instance]\nregion = x\n") == (1, "", (
        "fake-metadata: %s:2: [instance] region: unknown key; write availability-zone = "
        "eu-central-1a, which sets the region\n") % name.replace("-", "standard input"))


def test_pipe_of_a_shell():
    """A pipe is a file too."""
    done = subprocess.run(
        ["bash", "-c", "\"$0\" \"$1\" --dump --config <(echo '[instance]'; "
         "echo instance-id = i-0123456789abcdef0)", sys.executable, PROGRAM],
        stdout=subprocess.PIPE, universal_newlines=True)

    assert done.returncode == 0
    assert "\n    i-0123456789abcdef0\n" in done.stdout


def test_pipe_is_kept_over_a_reload(serve, tmp_path):
    """What a pipe said stays, since it cannot be read again; a file beside it is read anew."""
    pipe = tmp_path / "pipe"
    os.mkfifo(str(pipe))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_text, "[instance]\ninstance-id = i-0123456789abcdef0\n")
        service = serve("[tags]\n", args=["--config", str(pipe)])
        service.reload("[instance]\ninstance-type = m7g.large\n")

    assert service.get("/latest/meta-data/instance-id")[2] == "i-0123456789abcdef0"
    assert service.get("/latest/meta-data/instance-type")[2] == "m7g.large"


@pytest.mark.parametrize("path, error", [
    ("/nowhere/a.conf", "/nowhere/a.conf: No such file or directory"),
    ("/", "/: Is a directory"),
    ("/dev/zero", "/dev/zero: larger than 16777216 bytes"),
])
def test_file_that_cannot_be_read(path, error):
    """A file that cannot be read is an error with its name."""
    assert run("--test-config", "--config", path) == (1, "", "fake-metadata: %s\n" % error)


@pytest.mark.parametrize("argument", ["8001", ":8001"])
def test_lone_port(argument):
    """A port alone on the command line is an error that says what to write."""
    code, _, error = run(argument)

    assert code == 1
    assert error == (
        "fake-metadata: HOST: %s is only a port; write 127.0.0.1:8001\n" % argument)


@pytest.mark.parametrize("rest", [["--test-config"], ["--", "true"]], ids=["test", "command"])
def test_value_behind_a_blank(rest):
    """An error shows no secret that stands behind a blank, instead of "="."""
    code, said, error = run("--set", "credentials.secret-access-key", SECRET, *rest)

    assert code
    assert SECRET not in said + error


def test_named_sections_stand_beside_each_other(load):
    """Each [interface NAME] and [role NAME] is a section of its own, with its kind's defaults."""
    config = load("[interface eth1]\nipv6 = 2001:db8::1\n[interface eth2]\n"
                  "[role build]\nlifetime = 1h\n[role test]\n")

    assert [config[name]["ipv6"] for name in ("interface eth1", "interface eth2")] == [
        ["2001:db8::1"], []]
    assert [config[name]["lifetime"] for name in ("role build", "role test")] == [3600, 21600]


@pytest.mark.parametrize("variable, key, value", [
    ("EC2_LOCAL_IPV4", "public-ipv4", ["203.0.113.9"]),
    ("EC2_LOCAL_HOSTNAME", "public-hostname", "box.example.com")])
def test_environment_outranks_the_file(load, variable, key, value):
    """EC2_LOCAL_IPV4 and EC2_LOCAL_HOSTNAME outrank the configuration."""
    text = "[instance]\npublic-ipv4 = 198.51.100.1\npublic-hostname = other.example.com\n"

    assert load(text, **{variable: str(value).strip("[]'")})["instance"][key] == value


def test_environment_without_a_file():
    """EC2_LOCAL_IPV4 is taken where there is no configuration."""
    config = load_config(environ={"EC2_LOCAL_IPV4": "203.0.113.9"})

    assert config["instance"]["public-ipv4"] == ["203.0.113.9"]


def test_empty_variable_is_none(load):
    """An empty variable leaves the configuration as it is."""
    config = load("[instance]\npublic-ipv4 = 198.51.100.1\n", EC2_LOCAL_IPV4="")

    assert config["instance"]["public-ipv4"] == ["198.51.100.1"]


@pytest.mark.parametrize("variable, value", [
    ("EC2_LOCAL_IPV4", "nowhere"), ("EC2_LOCAL_IPV4", "::1"), ("EC2_LOCAL_HOSTNAME", "two  words")])
def test_bad_variable(load, variable, value):
    """A bad value in the environment is an error that names the variable."""
    with pytest.raises(ConfigError, match=variable + " in the environment: "):
        load("", **{variable: value})


@pytest.mark.parametrize("text, seconds", [
    ("0s", 0), ("1500ms", 1.5), ("90s", 90), ("5m", 300), ("6h", 21600), ("2d", 172800)])
def test_duration(text, seconds):
    """A duration is a whole number and a unit."""
    assert fake_metadata.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "90", "90S", "90 s", "1.5s", "-1s", "+1s", "90sm",
                                  "1h30m", "1e3s", "\u0662s", "9" * 10 + "s"])
def test_no_duration(text):
    """Anything else is no duration."""
    with pytest.raises(ValueError, match="90s"):
        fake_metadata.duration(text)


@pytest.mark.parametrize("text, seconds", [
    ("+0s", 1000), ("+90s", 1090), ("2026-12-01T08:00:00Z", 1796112000)])
def test_when(text, seconds):
    """A WHEN counts from the start, or is a time of its own."""
    assert fake_metadata.when(text)(1000) == seconds


# What does nothing.

ROLE_PATH = "/latest/meta-data/iam/security-credentials/BaseIAMRole"
PAST = "2020-01-01T00:00:00Z"
IDLE = {  # configuration -> its line that does nothing, and what is said of it
    "[tags]\nName = x\n": (1, "[tags]: not served unless [metadata-options] has"),
    "[credentials]\nprofile = dev\n": (
        2, "[credentials] profile: not used unless source = profile"),
    "[credentials]\nsource = process\ncommand = x\nfile = y\n": (
        4, "[credentials] file: not used unless source = profile"),
    "[role Build]\ntimeout = 3s\n": (
        2, "[role Build] timeout: not used unless source = profile or process"),
    "[role Build]\nform = container\n": (
        2, "[role Build] form: not used: form is for a path, and there is none"),
    "[credentials]\nrole =\nextended = yes\n": (
        3, "[credentials] extended: not used: role is empty"),
    "[events]\nspot-interruption = %s stop\n" % PAST: (
        2, "[events] spot-interruption: all its times are past"),
    "[events]\nrebalance-recommendation = %s\n" % PAST: (
        2, "[events] rebalance-recommendation: all its times are past"),
    "[events]\nscheduled-maintenance = %s system-reboot %s %s\n" % (PAST, PAST, PAST): (
        2, "[events] scheduled-maintenance: all its times are past"),
    "[events]\ntarget-lifecycle-state = %s Standby, %s InService\n" % (PAST, PAST): (
        2, "[events] target-lifecycle-state: all its times are past"),
    "[faults]\nx = /latest/* status 503 from %s for 5s\n" % PAST: (2, "[faults] x: the fault is"),
    "[faults]\nx = /latest/metadata/* status 503\n": (2, "[faults] x: has no effect"),
    "[faults]\nx = /latest/meta-data/mac code Failed\n": (2, "[faults] x: has no effect"),
    "[faults]\nx = /latest/meta-data/no empty\n": (2, "[faults] x: has no effect"),
    "[faults]\na b = %ss status 503\n" % ROLE_PATH: (2, "[faults] a b: has no effect"),
}


@pytest.mark.parametrize("text", IDLE)
def test_setting_that_does_nothing(check, text):
    """--test-config says what does nothing, with its place; it is no mistake."""
    line, words = IDLE[text]

    code, said = check(text)

    assert code == 0
    assert "FILE: configuration ok\n" in said
    assert said.count("\n") == 2 and "fake-metadata: FILE:%d: %s" % (line, words) in said


@pytest.mark.parametrize("text", [
    "", "[metadata-options]\ninstance-metadata-tags = enabled\n[tags]\nName = x\n",
    "[credentials]\nsource = static\naccess-key-id = AKIAIOSFODNN7EXAMPLE\n"
    "secret-access-key = secret\nsession-token =\nlifetime = 1h\ncommand =\n",
    "[credentials]\nsource = profile\nprofile = x\nfile = /nowhere\ntimeout = 3s\n",
    "[role Build]\nform = container\npath = /my/credentials\n",
    "[credentials]\nrole =\n[role Build]\nlifetime = 1h\n",
    "[events]\nspot-interruption = %s stop 2100-01-01T00:00:00Z\n" % PAST,
    "[events]\nspot-interruption = +0s hibernate\n",
    "[events]\nscheduled-maintenance = %s instance-stop %s\n" % (PAST, PAST),
    "[events]\ntarget-lifecycle-state = InService\n",
    "[events]\ntarget-lifecycle-state = %s Standby, +1h InService\n" % PAST,
    "[faults]\nx = /latest/* status 503 from %s for 5s every 10s\n" % PAST,
    "[faults]\nx = /latest/api/token status 503\n",
    "[faults]\nx = /latest/api/token empty\n",
    "[faults]\nx = /latest/meta-data/spot/* status 503\n",
    "[faults]\nx = /latest/meta-data/spot/ status 404\n",
    "[faults]\nx = /2021-03-23/meta-data/mac truncate 3\n",
    "[faults]\nx = /latest/meta-data/iam/info code Failed\n",
    "[faults]\nx = /v1/credentials expired\n",
    "[faults]\nx = /v2/credentials/BaseIAMRole status 503\n",
    "[metadata]\n/latest/dynamic/x = y\n[faults]\nx = /latest/dynamic/x empty\n",
    "[events]\nspot-interruption = +1h stop\n"
    "[faults]\nx = /latest/meta-data/spot/instance-action empty\n"])
def test_setting_that_does_something(check, text):
    """What has an effect, now or later, is not told."""
    assert check(text) == (0, "FILE: configuration ok\n")


def test_setting_that_does_nothing_in_the_log(serve):
    """A start and a reload say in the log what does nothing; also that a fault is over."""
    service = serve("[tags]\nName = x\n[faults]\nonce = /latest/* status 503 times 1\n")
    assert re.search(r"fake-metadata: \S+:1: \[tags\]: not served", service.log())
    assert "once" not in service.log()
    assert service.get("/latest/meta-data/mac")[0] == 503

    service.reload()

    told = r"fake-metadata: \S+:4: \[faults\] once: the fault is over"
    assert wait_for(lambda: re.search(told, service.log()))
    assert service.log().count("[tags]: not served") == 2
