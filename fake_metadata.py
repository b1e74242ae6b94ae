#!/usr/bin/env python3
"""Fake EC2 instance metadata service (IMDS) for a development box.

It serves what a real instance finds at http://169.254.169.254/: the rotating credentials of an
instance profile, IMDSv1 and IMDSv2, and the whole tree of metadata. One file, standard library
only, Python 3.7 and later.

    python3 fake_metadata.py [OPTIONS] -- COMMAND [ARG...]        (for as long as COMMAND runs)
    python3 fake_metadata.py [OPTIONS] [HOST | HOST:PORT]         (default 127.0.0.1:8000)
    export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:8000/
    curl http://127.0.0.1:8000/latest/meta-data/iam/security-credentials/BaseIAMRole

In a test:

    with fake_metadata.serve() as imds:
        subprocess.run(["aws", "configure", "list"], env=imds.environ)

Signals:

    HUP          reopen the log, read the configuration again
    USR1         make new credentials now
    TERM, INT    stop accepting, finish what is in flight, exit 0

Files: it writes its log; what must last, in the directory STATE_DIRECTORY, and what it has done
(see State), in the directory RUNTIME_DIRECTORY, if those are set. It reads the files that --config
names, and those that the configuration names.
Environment: EC2_LOCAL_HOSTNAME and EC2_LOCAL_IPV4 set public-hostname and public-ipv4;
AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE are those of the AWS CLI, for source = profile;
NOTIFY_SOCKET is the supervisor's.

Read it from top to bottom: what it serves (the tree, the instance, events, faults, credentials,
signatures, session tokens, the service), how it serves (requests, handler, server, log), how it is
configured, and how it runs: as a process, in a test, for a command.

A comment with "(capture)" states what was recorded from a real instance.
"""
from __future__ import annotations

import argparse
import base64
import collections
import concurrent.futures
import configparser
import contextlib
import csv
import datetime
import difflib
import email.utils
import errno
import fcntl
import functools
import gzip
import hashlib
import heapq
import hmac
import http.client
import http.server
import ipaddress
import itertools
import json
import math
import operator
import os
import pwd
import random
import re
import resource
import select
import selectors
import shlex
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import types
import urllib.parse
import uuid
import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List
from typing import NamedTuple, Optional, Set, Tuple, Union

VERSION = "1.8"


# ---------------------------------------------------------------- names and limits ------------

DEFAULT_BIND = ("127.0.0.1", 8000)  # iptables' REDIRECT delivers there; the LAN cannot reach it
TOKEN_PATH = "/latest/api/token"
TOKEN_HEADER = "x-aws-ec2-metadata-token"
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN_METHODS = "Allow: OPTIONS, PUT\r\n"  # those of TOKEN_PATH (capture)
POD_PATH = "/v1/credentials"  # of EKS Pod Identity; with ?id=, of the first ECS agents
IMDS_IPV4, IMDS_IPV6 = "169.254.169.254", "fd00:ec2::254"
IMDS_ADDRESSES = {ipaddress.ip_address(IMDS_IPV4), ipaddress.ip_address(IMDS_IPV6)}
# The addresses that may lead to this service on a box: IMDS first, then ECS and EKS.
SERVICE_ADDRESSES = (IMDS_IPV4, IMDS_IPV6, "169.254.170.2", "169.254.170.23", "fd00:ec2::23")
SERVICE_PORT = 80  # of them
SERVER_NAME = "EC2ws"  # what the real service sends as its Server header

# Versions of the metadata tree, as a real instance listed them in September 2026 (capture).
VERSIONS = (
    "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01",
    "2008-09-01", "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25",
    "2014-11-05", "2015-10-20", "2016-04-19", "2016-06-30", "2016-09-02", "2018-03-28",
    "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03", "2021-03-23",
    "2021-07-15", "2022-09-24", "2024-04-11", "2025-10-04", "2026-04-15", "latest",
)

# Names of this box, also as its containers see it (Docker, Podman). Any IP address is one too.
OWN_HOSTS = ("localhost", "host.docker.internal", "host.containers.internal")

IDENTITY_DOCUMENT = "/latest/dynamic/instance-identity/document"

# Every instance has this role, with an instance profile or without one.
IDENTITY_ROLE = "aws:ec2-instance"

# Signatures of the identity document.
SIGNING_KEY_BITS = 2048
MAX_KEY_BITS = 4096  # nobody else is served while a larger one signs
IDENTITY_FILE = "instance-identity.pem"  # in the state directory
SERVICE_USER = "fake-metadata"  # on a box
BOX_CREDENTIALS = "/etc/fake-metadata.credentials"  # a copy of yours, for that user
BOX_IDENTITY = "/var/lib/fake-metadata/" + IDENTITY_FILE  # of the service on a box
PUBLIC_EXPONENT = 65537
SIGNATURES_PATIENCE = 10  # seconds that a request waits for them: making a key takes time

# Session tokens (EC2 User Guide, "How Instance Metadata Service Version 2 works").
MAX_TOKEN_TTL = 21600  # seconds: six hours
TOKEN_PREFIX = b"\x01\x00\x04"  # "AQAE" in base64, as real tokens begin
TOKEN_SHAPE = "AQAE[A-Za-z0-9_-]{50}"  # without the "==" at its end
TOKEN_IN_TEXT = TOKEN_SHAPE + r"|AQAE[A-Za-z0-9_-]{0,49}\Z"  # whole, or cut off by the end
TOKEN_LENGTH = 56  # characters

# Credentials.
REFRESH_AHEAD = 300  # seconds: "at least five minutes before the expiration" (EC2 User Guide)
COMMAND_POLL = 0.05  # seconds between two checks on a running command
SETTLE_SECONDS = 0.05  # for which a credentials file must stay unchanged to be believed
DOCUMENT_POLL = 0.05  # seconds between two checks of a request that waits for a document
FIRST_FETCH_WAIT = 3  # seconds to keep the port closed while the first credentials are fetched
CLIENT_PATIENCE = 0.8  # seconds that a request waits for credentials; most SDKs give up after 1
MAX_SOURCE_BYTES = 65536  # output of a credential command; a shared credentials file
MAX_BACK_OFF = 60  # seconds between two attempts at a source that fails

# Requests. Each limit has a status of its own.
METHODS = ("GET", "HEAD", "PUT", "OPTIONS", "POST", "DELETE", "PATCH", "TRACE", "CONNECT")
MAX_METHOD = 32  # bytes, else 501
MAX_TARGET = 8192  # bytes, else 414
MAX_HEAD = 16384  # bytes, else 431
MAX_FIELDS = 128  # header lines, else 431: a head that trickles in is parsed repeatedly
MAX_BODY = 16384  # bytes, else 413; no request to this service needs a body at all
MAX_CHUNKS = 64  # else 413
MAX_CHUNK_HEAD = 1024  # bytes of a chunk's size and extensions
MAX_CACHED_HEAD = 1024  # bytes: longer heads are parsed anew, so that the cache stays small
MAX_USER_DATA = 16384  # bytes, the limit of EC2

# Connections.
REQUEST_SECONDS = 10  # for a request to arrive in full; for a stalled client to take more
IDLE_SECONDS = 60  # between two requests
SILENCE_SECONDS = 30  # of silence where no answer would arrive: no client waits this long
LINGER_SECONDS = 2  # for a refused client to read its answer before the connection is closed
STOP_SECONDS = 2  # for what is in flight when the service stops; init scripts kill after 5
SWEEP_SECONDS = 1  # between two looks at all deadlines, and at credentials that may be due
MAX_CONNECTIONS = 4096
MAX_INSTANCES = 4096  # kept in memory, of those that clients see by their address
FORGET_SECONDS = 3600  # until all are forgotten; a client that asks again gets the same one
IP_FREEBIND = 15  # ip(7); the socket module has no name for it
ORIGINAL_DST = 80  # SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST of the kernel's netfilter headers
NETLINK_SOCK_DIAG = 4  # sock_diag(7)
SOCK_DIAG_BY_FAMILY = 20
DIAGNOSIS_BYTES = 256  # of an answer, of which the first 88 are needed
OVERFLOW_UID = 65534  # of a user whom our user namespace does not know (user_namespaces(7))
NAME_SECONDS = 10  # for which the name of a user is trusted: users come and go
MAX_USER_NAMES = 64
RESERVED_FILES = 32  # open files kept for the log, the configuration, the sources
ACCEPT_BATCH = 16  # connections accepted before the others are served; below RESERVED_FILES
REQUESTS_PER_TURN = 16  # pipelined requests of one client before the others are served
RECEIVE_BYTES = 65536
ACCEPT_PAUSE = 0.2  # seconds without accepting when the process has no files left to open
WATCH_SECONDS = 20  # between two checks that the addresses lead here; two in a row must agree
PROBE_SECONDS = 1  # for a connection to arrive here from this box

# Log.
MAX_LOGGED_LINE = 1024  # characters of a request line, and of a user agent
MAX_REFUSED_LINE = 128  # the same, of a request that was not even admitted
MAX_REFUSALS = 50  # lines a second for the refusals of one peer; the rest are counted
MAX_GATHERED = 65536  # characters of lines that wait to be written
PIPE_BYTES = 4096  # what a pipe that is ready takes without waiting (PIPE_BUF of Linux)

# Who has asked, by the log.
MAX_READ_LINE = 8192  # bytes: lines of ours are shorter
MAX_CLIENTS = 500  # by name; the rest are summed up
MAX_AGENTS = 20  # by name, of one client
MAX_AGENT = 256  # characters
MAX_SHOWN_AGENT = 60  # the same, in the table

# Configuration.
MAX_CONFIG_BYTES = 16777216
MAX_MISTAKES = 20  # reported at once

# In a test.
MAX_KEPT_REQUESTS = 10000
THREAD_POLL = 0.2  # seconds between two checks on the thread of a service

# Capture of another metadata service.
CAPTURE_SECONDS = 120  # for all of it
ANSWER_SECONDS = 5  # for a connection, and between two pieces of an answer
MAX_ANSWER_BYTES = 1048576
MAX_CAPTURED_BYTES = 8388608  # of all answers
MAX_CAPTURED_PATHS = 10000
MAX_DEPTH = 16  # slashes in a path

# Process.
STATE_FILE = "state"  # in the runtime directory
MAX_STATE_BYTES = 1048576
EARLY_SIGNALS = (signal.SIGHUP, signal.SIGUSR1)  # may come before there are handlers for them
TEMPORARY_ERRORS = (errno.EADDRNOTAVAIL, socket.EAI_AGAIN)  # no such address, no resolver yet

FOREVER = float("inf")


class ConfigError(Exception):
    """An error in a configuration: its place, section and key, and what would be right.

    The text has one line for each error.
    """

    def __init__(self, words: str, section: str = "", key: str = "", place: str = ""):
        super().__init__(words)
        self.section = section
        self.key = key
        self.place = place  # FILE:LINE

    @property
    def file_and_line(self) -> Tuple[str, int]:
        """Split the place into file and line, by which errors are sorted."""
        file, _, line = self.place.rpartition(":")
        return file, int(line) if line.isdigit() else 0

    def __str__(self):
        name = ""
        if self.section:
            name = "[%s] %s" % (shown_section(self.section), printable(self.key))
        return ": ".join(filter(None, (self.place, name.strip(), super().__str__())))


class Mistakes:
    """Collects the ConfigErrors of several steps; raises them as one when its block ends.

    `places` is {(section, key): FILE:LINE}.
    """

    def __init__(self, places: Dict[Tuple[str, str], str]):
        self._errors = []
        self._places = places

    def attempt(self, step: Callable, *arguments: Any) -> Any:
        """Call a step; return its result, or None if it raises ConfigError, which is noted."""
        try:
            return step(*arguments)
        except ConfigError as error:
            self.add(error)

    def add(self, error: ConfigError) -> None:
        """Note an error, and its place."""
        for key in (error.key, ""):
            error.place = error.place or self._places.get((error.section, key), "")
        self._errors.append(error)

    def are_in(self, section: str) -> bool:
        """Tell whether there are errors in a section."""
        return any(error.section == section for error in self._errors)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind or not self._errors:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        self._errors.sort(key=operator.attrgetter("file_and_line"))
        lines = [str(error) for error in self._errors[:MAX_MISTAKES]]
        if len(self._errors) > MAX_MISTAKES:
            lines.append("and %d more errors" % (len(self._errors) - MAX_MISTAKES))
        raise ConfigError("\n".join(lines))


# ---------------------------------------------------------------- the tree --------------------
#
# What the service serves: ROUTES, preceded by the functions that render its longer documents.
# `i` is always the instance (next section).

def identity_document(i: Instance) -> str:
    """Render the instance identity document, with the keys in the order of the real one."""
    return pretty_json({
        "accountId": i.account_id,
        "architecture": i.architecture,
        "availabilityZone": i.availability_zone,
        "billingProducts": i.billing_products,
        "devpayProductCodes": None,
        "marketplaceProductCodes": i.product_codes,
        "imageId": i.ami_id,
        "instanceId": i.instance_id,
        "instanceType": i.instance_type,
        "kernelId": i.kernel_id,
        "pendingTime": utc(i.launch_time),
        "privateIp": i.first_ipv4,
        "ramdiskId": i.ramdisk_id,
        "region": i.region,
        "version": "2017-09-30",
    })


def identity_signature(i: Instance) -> Optional[SignedDocument]:
    """Serve the signature of the identity document, in base64."""
    return signed_document(i, "signature")


def identity_pkcs7(i: Instance) -> Optional[SignedDocument]:
    """Serve the identity document and its signature in PKCS#7, without the lines of PEM."""
    return signed_document(i, "pkcs7")


def signed_document(i: Instance, form: str) -> Optional[SignedDocument]:
    """Sign the identity document, or the user's own text in its place, unless that is empty."""
    text = identity_document(i)
    if IDENTITY_DOCUMENT in i.own:
        text = own_text(i.own[IDENTITY_DOCUMENT], i.now)
    if not text:
        return None
    return SignedDocument(i.signer, text, form, i.now)


def iam_info(i: Instance) -> Optional[str]:
    """Name the instance profile, if there is one."""
    if i.instance_profile_arn is None:
        return None
    return pretty_json({
        "Code": "Success",
        "LastUpdated": utc(i.now),
        "InstanceProfileArn": i.instance_profile_arn,
        "InstanceProfileId": i.instance_profile_id,
    })


def identity_info(i: Instance) -> str:
    """Name the account of the instance identity role."""
    return pretty_json({
        "Code": "Success",
        "LastUpdated": utc(i.now),
        "AccountId": i.account_id,
    })


def role_credentials(i: Instance) -> RotatingDocument:
    """Serve the credentials of the instance profile's role, or of i.served_role."""
    return RotatingDocument(i.credentials[i.served_role], credentials_document)


def extended_credentials(i: Instance) -> RotatingDocument:
    """Add the account id, for newer SDKs, which ask here first (aws-sdk-java-v2 PR 6176)."""
    render = functools.partial(credentials_document, account_id=i.account_id)
    return RotatingDocument(i.credentials[i.extended_role], render)


def identity_credentials(i: Instance) -> RotatingDocument:
    """Serve the credentials of the instance identity role."""
    return RotatingDocument(i.credentials[IDENTITY_ROLE], credentials_document)


def task_credentials(i: Instance) -> Optional[RotatingDocument]:
    """Serve the credentials of a role in the form of the ECS agent."""
    return container_credentials(i, functools.partial(task_document, role_arn=arn_of_role(i)))


def pod_credentials(i: Instance) -> Optional[RotatingDocument]:
    """Serve the credentials of a role in the form of the EKS Pod Identity agent."""
    return container_credentials(i, functools.partial(pod_document, account_id=i.account_id))


def local_credentials(i: Instance) -> Optional[RotatingDocument]:
    """Serve the credentials of a role in the form of ECS local container endpoints."""
    return container_credentials(i, functools.partial(local_document, role_arn=arn_of_role(i)))


def container_credentials(i: Instance, render: Callable) -> Optional[RotatingDocument]:
    """Serve the credentials of i.served_role; None if the instance has no role."""
    if i.served_role is None:
        return None
    return RotatingDocument(i.credentials[i.served_role], render, "application/json")


def arn_of_role(i: Instance) -> str:
    """Return the ARN of i.served_role."""
    return "arn:%s:iam::%s:role/%s" % (i.partition, i.account_id, i.served_role)


def tag_set(i: Instance) -> Optional[str]:
    """Render all tags as one JSON object: {} if tags are enabled and there are none."""
    if i.tags is None:
        return None
    tags = {tag.tag: tag.tag_value for tag in i.tags}
    return compact_json(tags)


def user_data(i: Instance) -> Optional[Document]:
    """Serve the user data, byte for byte."""
    if i.user_data is None:
        return None
    return Document(i.user_data, "application/octet-stream", i.now)


# Path to value. A value is a text with facts of the instance in braces, or a function of the
# instance. A row that needs a fact which the instance lacks (None), or whose function returns
# None, is absent: 404, and in no listing. A path with one of the placeholders of MEMBERS stands for
# one path for each member. Directories are derived from the paths; three of them are
# rows of their own, because a real instance lists them differently.
ROUTES = {
    "/": "\n".join(VERSIONS),
    "/latest": "dynamic\nmeta-data\nuser-data",  # with user data and without
    "/latest/dynamic/instance-identity/document": identity_document,
    "/latest/dynamic/instance-identity/pkcs7": identity_pkcs7,
    "/latest/dynamic/instance-identity/rsa2048": identity_pkcs7,  # of DSA and RSA on EC2
    "/latest/dynamic/instance-identity/signature": identity_signature,
    "/latest/meta-data/ami-id": "{ami_id}",
    "/latest/meta-data/ami-launch-index": "0",
    "/latest/meta-data/ami-manifest-path": "(unknown)",
    "/latest/meta-data/autoscaling/target-lifecycle-state": "{target_lifecycle_state}",
    "/latest/meta-data/block-device-mapping/ami": "{root_name}",
    "/latest/meta-data/block-device-mapping/root": "{root_device}",
    "/latest/meta-data/block-device-mapping/{volume}": "{device}",
    "/latest/meta-data/events/maintenance/history": "{past_events}",
    "/latest/meta-data/events/maintenance/scheduled": "{scheduled_events}",
    "/latest/meta-data/events/recommendations/rebalance": "{rebalance_notice}",
    "/latest/meta-data/hostname": "{local_hostname}",
    "/latest/meta-data/iam/info": iam_info,
    "/latest/meta-data/iam/security-credentials/{role}": role_credentials,
    "/latest/meta-data/iam/security-credentials-extended/{extended_role}": extended_credentials,
    "/latest/meta-data/identity-credentials/ec2/info": identity_info,
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance":
        identity_credentials,
    "/latest/meta-data/instance-action": "none",
    "/latest/meta-data/instance-id": "{instance_id}",
    "/latest/meta-data/instance-life-cycle": "{instance_life_cycle}",
    "/latest/meta-data/instance-type": "{instance_type}",
    "/latest/meta-data/ipv6": "{first_ipv6}",
    "/latest/meta-data/kernel-id": "{kernel_id}",
    "/latest/meta-data/local-hostname": "{local_hostname}",
    "/latest/meta-data/local-ipv4": "{first_ipv4}",
    "/latest/meta-data/mac": "{mac}",
    # All that Nitro has left of it.
    "/latest/meta-data/metrics/vhostmd": '<?xml version="1.0" encoding="UTF-8"?>',
    "/latest/meta-data/network/interfaces/macs/{mac}/device-number": "{device_number}",
    "/latest/meta-data/network/interfaces/macs/{mac}/interface-id": "{interface_id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv4-associations/{associated_public}":
        "{associated_private}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv4-prefix": "{ipv4_prefix}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv6-prefix": "{ipv6_prefix}",
    "/latest/meta-data/network/interfaces/macs/{mac}/ipv6s": "{ipv6}",
    "/latest/meta-data/network/interfaces/macs/{mac}/local-hostname": "{local_hostname}",
    "/latest/meta-data/network/interfaces/macs/{mac}/local-ipv4s": "{local_ipv4}",
    "/latest/meta-data/network/interfaces/macs/{mac}/mac": "{mac}",
    "/latest/meta-data/network/interfaces/macs/{mac}/network-card": "{network_card}",
    "/latest/meta-data/network/interfaces/macs/{mac}/owner-id": "{owner_id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/public-hostname": "{public_hostname}",
    "/latest/meta-data/network/interfaces/macs/{mac}/public-ipv4s": "{public_ipv4}",
    "/latest/meta-data/network/interfaces/macs/{mac}/security-group-ids": "{security_group_ids}",
    "/latest/meta-data/network/interfaces/macs/{mac}/security-groups": "{security_groups}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-id": "{subnet_id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-ipv4-cidr-block":
        "{subnet_ipv4_cidr_block}",
    "/latest/meta-data/network/interfaces/macs/{mac}/subnet-ipv6-cidr-blocks":
        "{subnet_ipv6_cidr_blocks}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-id": "{vpc_id}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-block":
        "{vpc_ipv4_cidr_block}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks":
        "{vpc_ipv4_cidr_blocks}",
    "/latest/meta-data/network/interfaces/macs/{mac}/vpc-ipv6-cidr-blocks":
        "{vpc_ipv6_cidr_blocks}",
    "/latest/meta-data/placement/availability-zone": "{availability_zone}",
    "/latest/meta-data/placement/availability-zone-id": "{availability_zone_id}",
    "/latest/meta-data/placement/region": "{region}",
    "/latest/meta-data/product-codes": "{product_codes}",
    "/latest/meta-data/profile": "default-hvm",
    "/latest/meta-data/public-hostname": "{public_hostname}",
    "/latest/meta-data/public-ipv4": "{first_public_ipv4}",
    # "0=my-key" for the directory 0/: cloud-init and facter take what stands before the "=".
    "/latest/meta-data/public-keys": "{numbered_keys}",
    "/latest/meta-data/public-keys/{key_number}/openssh-key": "{public_key}\n",  # with a final LF
    "/latest/meta-data/ramdisk-id": "{ramdisk_id}",
    "/latest/meta-data/reservation-id": "{reservation_id}",
    "/latest/meta-data/security-groups": "{security_groups}",
    "/latest/meta-data/services/domain": "{domain}",
    "/latest/meta-data/services/partition": "{partition}",
    "/latest/meta-data/spot/instance-action": "{spot_notice}",
    "/latest/meta-data/spot/termination-time": "{spot_termination_time}",
    "/latest/meta-data/system": "{system}",
    "/latest/meta-data/tag-sets/instance": tag_set,
    "/latest/meta-data/tags/instance/{tag}": "{tag_value}",
    "/latest/user-data": user_data,
    # Container endpoints, for AWS_CONTAINER_CREDENTIALS_FULL_URI and ..._RELATIVE_URI.
    "/creds": local_credentials,
    "/role/{served_role}": local_credentials,
    "/v1/credentials": pod_credentials,  # of the instance's role, unless Authorization says whose
    "/v2/credentials/{served_role}": task_credentials,  # and /v1/credentials?id=ROLE
}

# Placeholder in a path -> the list of the instance whose members take its place, a path for each.
MEMBERS = {
    "{associated_public}": "associations",  # before {mac}: an association knows its interface's
    "{mac}": "interfaces",
    "{key_number}": "public_keys",
    "{tag}": "tags",
    "{volume}": "volumes",
    "{served_role}": "served_roles",
}

# Below these, and around the user's own paths, directories list what is in them; elsewhere a
# directory is a row of ROUTES, or 404.
LISTED_ROOTS = ("/latest/meta-data/", "/latest/dynamic/")

# Rows of ROUTES that are directories: these may have others below them.
LISTING_ROWS = ("/", "/latest", "/latest/meta-data/public-keys")


def build_tree(i: Instance) -> Dict[str, ServedDocument]:
    """Build {path: document} from ROUTES and i.own, the user's own {path: text}; add directories.

    Raises ConfigError where a path would be both a value and a directory.
    """
    members = {part: members_of(i, name) for part, name in MEMBERS.items()}
    documents = {}
    for path, value in ROUTES.items():
        part = next((part for part in MEMBERS if part in path), None)
        for member in members.get(part, [i]):
            add_row(documents, path, value, member)
    for path, (role, make_document) in i.role_paths.items():
        documents[path] = make_document(member_of(i, Instance(served_role=role)))
    check_own(i.own, i.role_paths)
    for path, text in i.own.items():
        add_own(documents, path, text, i.now)
    check_nesting(documents, i.role_paths)
    tree = {}
    listed = [path for path in documents if path.startswith(LISTED_ROOTS) or path in i.own]
    for path, names in directories_of(listed).items():
        tree[path] = Listing("\n".join(sorted(names)), modified=i.now)
    tree.update(documents)
    return tree


def members_of(i: Instance, name: str) -> List[Instance]:
    """List the members of i.NAME, each of them together with the facts of the instance."""
    members = []
    for member in getattr(i, name) or ():
        members.append(member_of(i, member))
    return members


def member_of(i: Instance, facts: Instance) -> Instance:
    """Put facts of a member beside those of the instance, or in their place."""
    return Instance(**{**vars(i), **vars(facts)})


def add_row(documents: dict, path: str, value: Any, member: Instance) -> None:
    """Add a row of ROUTES, unless the instance lacks a fact that it needs."""
    facts = Facts(vars(member))
    try:
        path = path.format_map(facts)
        served = value(member) if callable(value) else value.format_map(facts)
    except MissingFact:
        return
    if isinstance(served, str):
        served = Document(served, modified=member.now)
    if served:
        documents[path] = served


class MissingFact(Exception):
    """The instance lacks a fact."""


class Facts(dict):
    """The facts of an instance as they are served: lists have one item per line."""

    def __getitem__(self, name):
        value = super().__getitem__(name)  # a KeyError means a typo in ROUTES
        if value is None:
            raise MissingFact(name)
        if isinstance(value, list):
            return "\n".join(value)
        return value


def own_path(key: str) -> str:
    """Expand a key of [metadata] to a path: one without a leading slash is below meta-data/."""
    if not key.startswith("/"):
        key = "/latest/meta-data/" + key
    return canonical_path(key)


def add_own(documents: dict, path: str, text: str, now: float) -> None:
    """Add one of the user's own values; an empty one removes the path and all below it."""
    if text:
        documents[path] = Document(own_text(text, now), modified=now)
        return
    for other in list(documents):
        if other == path or other.startswith(path + "/"):
            del documents[other]


def own_text(text: str, now: float) -> str:
    """Render a value of [metadata].

    Its LastUpdated moves, as does that of the document that it replaces.
    """
    return with_last_updated(unquoted(text), now)


def with_last_updated(text: str, now: float) -> str:
    """Set LastUpdated to a time, where a document has it."""
    return re.sub('("LastUpdated" ?: ?)"[^"]*"', r'\1"%s"' % utc(now), text)


def unquoted(text: str) -> str:
    """Decode a JSON string; return any other text as it is.

    "" is an empty value, not an absent one; "two\\n  lines" has what an INI file would lose.
    """
    try:
        value = json.loads(text) if text.startswith('"') else text
        value.encode()  # not a half of a surrogate pair
        return value
    except ValueError:
        return text


def check_own(own: dict, role_paths: dict) -> None:
    """Refuse a value of [metadata] where the credentials of a role are served."""
    for path, text in own.items():
        if text and path in role_paths:
            raise ConfigError(
                "the credentials of [role %s] are served at %s; write another path" % (
                    role_paths[path][0], short_path(path)), "metadata", short_path(path))


def check_nesting(documents: dict, role_paths: dict) -> None:
    """Refuse a value at a path that has others below it: it would be a file and a directory."""
    for path in documents:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in documents and parent not in LISTING_ROWS:
                section, key = "metadata", short_path(parent)
                by_role = role_paths.get(parent) or role_paths.get(path)
                if by_role:
                    section, key = "role " + by_role[0], "path"
                raise ConfigError("%s cannot have a value: %s is below it" % (
                    short_path(parent), short_path(path)), section, key)
            parent = parent.rpartition("/")[0]


def short_path(path: str) -> str:
    """Shorten a path to the key that it has in [metadata]."""
    prefix = "/latest/meta-data/"
    return path[len(prefix):] if path.startswith(prefix) else path


def directories_of(paths: Iterable[str]) -> Dict[str, Set[str]]:
    """Map each directory to the names in it, with a slash after those of directories."""
    directories = collections.defaultdict(set)
    for path in paths:
        slash = ""
        while path.count("/") > 1:  # up to, but not including, the root, which is a row
            path, _, name = path.rpartition("/")
            directories[path].add(name + slash)
            slash = "/"
    for names in directories.values():
        names.difference_update([name[:-1] for name in names if name.endswith("/")])
    return directories


def canonical_path(target: str) -> str:
    """Reduce the target of a request to a path of the tree.

    The query goes, %69 is decoded, dot segments and empty ones go, and a dated version is "latest":
    so do //, /./, %69nstance-id, a slash at the end and ?x=1 reach the resource (capture), and
    /latest/user-data/../meta-data/ as in any URL (RFC 3986, section 5.2.4).
    """
    path = target.partition("?")[0]
    if "%" in path:
        path = re.sub("%([0-9A-Fa-f]{2})", lambda code: chr(int(code.group(1), 16)), path)
    parts = [part for part in without_dot_segments(path.split("/")) if part]
    if parts and parts[0] in VERSIONS and parts[1:] != ["api", "token"]:
        parts[0] = "latest"  # session tokens are issued at /latest only
    return "/" + "/".join(parts)


def without_dot_segments(segments: Iterable[str]) -> List[str]:
    """Resolve "." and ".." among the segments of a path; above the root there is nothing."""
    resolved = []
    for segment in segments:
        if segment == "..":
            del resolved[-1:]
        elif segment != ".":
            resolved.append(segment)
    return resolved


class Response:
    """An answer, rendered except for the headers that change from one to the next.

    Those stand between `first_headers` and `last_headers`: the real service has Content-Type
    last, but first in a document (capture).
    """

    def __init__(self, body=b"", status=200, headers="", content_type="text/plain", reason=""):
        self.status = status
        self.reason = reason  # for the log, never for the client
        self.body = body
        self.headers = headers
        self.hop_limit = None  # hops that its packets survive; None: the usual number
        self.status_line = status_line(status)
        self.first_headers = with_length(headers, len(body))
        self.last_headers = ("Content-Type: %s\r\n" % content_type).encode()


def shortened(response: Response, length: int) -> Response:
    """Copy a response with the first bytes of its body only; the headers do not show the cut."""
    copied = Response(response.body[:length], response.status, response.headers)
    copied.last_headers = response.last_headers
    copied.hop_limit = response.hop_limit
    copied.reason = response.reason
    return copied


class Document(Response):
    """What is served at a path: a text or bytes. `modified` is in seconds since the epoch."""

    def __init__(self, content, content_type="text/plain", modified=0):
        body = content if isinstance(content, bytes) else content.encode()
        self.content_type = content_type
        super().__init__(body, headers=document_headers(content_type, int(modified)))
        self.last_headers = b""

    def current(self) -> Document:
        """Return the current document: always this one."""
        return self


class Listing(Document):
    """A directory: its names, one a line, without a final line feed, as crawlers need them."""


class RotatingDocument:
    """A document of credentials: rendered anew whenever they change, while the tree stays."""

    patience = CLIENT_PATIENCE  # seconds that a request waits for it

    def __init__(self, credentials, render, content_type="text/plain"):
        self.credentials = credentials
        self._render = render
        self._content_type = content_type
        self._rendered = None
        self._document = None

    @property
    def pending(self) -> bool:
        """Tell whether credentials are being fetched."""
        return self.credentials.pending

    def current(self) -> Optional[Document]:
        """Return the current document; None while there are no valid credentials."""
        credentials = self.credentials.current()
        if credentials is not self._rendered:
            self._rendered = credentials
            self._document = None
            if credentials:
                self._document = Document(
                    self._render(credentials), self._content_type, credentials.last_updated)
        return self._document


class SignedDocument:
    """A signature of the identity document, made when it is first asked for."""

    patience = SIGNATURES_PATIENCE

    def __init__(self, signer, text, form, modified):
        self._signer = signer
        self._text = text.encode()
        self._form = form  # a field of Signatures
        self._modified = modified
        self._document = None

    @property
    def pending(self) -> bool:
        """Tell whether the signature is being made."""
        return self._signer.pending

    def current(self) -> Optional[Document]:
        """Return the document; None while the signature is being made."""
        if not self._document:
            signatures = self._signer.sign(self._text)
            if signatures:
                self._document = Document(
                    getattr(signatures, self._form), modified=self._modified)
        return self._document


ServedDocument = Union[Document, RotatingDocument, SignedDocument]


@functools.lru_cache(maxsize=16)
def document_headers(content_type: str, modified: int) -> str:
    """Write the headers of a document that do not depend on what is in it."""
    return "Content-Type: %s\r\nAccept-Ranges: none\r\nLast-Modified: %s\r\n" % (
        content_type, http_date(modified))


@functools.lru_cache(maxsize=512)
def with_length(headers: str, length: int) -> bytes:
    """Write headers and the length of a body; documents of the same length share them."""
    return ("%sContent-Length: %d\r\n" % (headers, length)).encode()


@functools.lru_cache(maxsize=64)
def status_line(status: int) -> bytes:
    """Write the first line of an answer."""
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase(status).encode())


def phrase(status: int) -> str:
    """Return the reason phrase of a status."""
    return http.server.BaseHTTPRequestHandler.responses.get(status, ("Unknown",))[0]


@functools.lru_cache(maxsize=16)
def http_date(seconds: int) -> str:
    """Write a time in the form of HTTP headers: Tue, 01 Dec 2026 08:00:00 GMT."""
    return email.utils.formatdate(seconds, usegmt=True)


def utc(seconds: float) -> str:
    """Write a time in the one form that every client reads: 2026-12-01T08:00:00Z.

    With a fraction or +00:00, minio and the Rust SDK refuse it.
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def timestamp(text: str) -> int:
    """Read a time in ISO 8601, UTC or with an offset, as seconds since the epoch.

    Fractions are dropped. By hand, since datetime.fromisoformat takes no Z before Python 3.11.
    """
    match = re.fullmatch(
        "([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,][0-9]+)?"
        "([Zz]|UTC|[+-][0-9]{2}:?[0-9]{2})", text)
    wrong = ValueError("not a time; write it like 2026-12-01T08:00:00Z")
    if not match:
        raise wrong
    words = " ".join(match.groups()).upper().replace("UTC", "Z")
    try:
        return int(datetime.datetime.strptime(words, "%Y-%m-%d %H:%M:%S %z").timestamp())
    except (ValueError, OverflowError):
        raise wrong


def pretty_json(fields: Dict[str, Any]) -> str:
    """Write a JSON object as the real service does (capture).

    Two spaces of indent, a space on both sides of the colon, lists in one line, no final LF.
    """
    lines = ["  %s : %s" % (json_text(key), json_text(value)) for key, value in fields.items()]
    return "{\n%s\n}" % ",\n".join(lines)


def json_text(value: Union[str, None, List[str]]) -> str:
    """Write a text, None or a list of texts as JSON; only what must be escaped is."""
    if isinstance(value, list):
        return "[ %s ]" % ", ".join(map(json_text, value))
    return json.dumps(value, ensure_ascii=False)


# ---------------------------------------------------------------- the instance ----------------

# us-east-1a; a local zone, us-west-2-lax-1a; a Wavelength zone, us-east-1-wl1-bos-wlz-1.
ZONE = re.compile(
    "(?P<region>(?P<area>[a-z]{2}|us-gov|us-iso[bf]?|eu-isoe|eusc-de)"
    "-(?P<direction>[a-z]+)-(?P<number>[0-9]+))"
    "((?P<local>-[a-z]+-[0-9]+)?(?P<letter>[a-z])|(?P<wavelength>-wl[0-9]-[a-z]+-wlz-[0-9]))")

# Area of a region -> partition and domain; all others are aws and amazonaws.com (partitions.json
# of the SDKs).
PARTITIONS = {
    "cn": ("aws-cn", "amazonaws.com.cn"),
    "us-gov": ("aws-us-gov", "amazonaws.com"),
    "us-iso": ("aws-iso", "c2s.ic.gov"),
    "us-isob": ("aws-iso-b", "sc2s.sgov.gov"),
    "eu-isoe": ("aws-iso-e", "cloud.adc-e.uk"),
    "us-isof": ("aws-iso-f", "csp.hci.ic.gov"),
    "eusc-de": ("aws-eusc", "amazonaws.eu"),
}

# Numbers of the zones a, b, c where they are not 1, 2, 3 for all accounts (captures).
ZONE_NUMBERS = {
    "ap-northeast-3": "312",
    "ap-south-1": "132",
    "eu-central-1": "231",
    "eu-west-2": "231",
}

# As DescribeInstanceTypes has it; metal sizes are not Xen.
XEN_FAMILIES = (
    "t1", "t2", "m1", "m2", "m3", "m4", "c1", "c3", "c4", "cc1", "cc2", "cg1", "cr1", "r3", "r4",
    "i2", "i3", "d2", "x1", "x1e", "g2", "g3", "g3s", "p2", "p3", "hi1", "hs1", "f1", "h1",
)


class Instance(types.SimpleNamespace):
    """The facts of an instance, or of one of its network interfaces, tags, volumes or roles.

    None stands for a fact that the instance does not have. Names are those of the configuration:
    ami-id is i.ami_id. `describe_instance` derives the facts that do not change. MetadataService
    adds the rest: credentials and the like once, i.now and the facts of events each time it builds
    the tree.
    """


def describe_instance(config: dict, box: str, now: float) -> Instance:
    """Derive all facts of the instance from the few that are configured.

    Configured facts stay as they are. `box` identifies this machine (see box_id): ids are made
    from it, so that they last, and differ from those of other machines. `now` is in seconds since
    the epoch. Raises ConfigError.
    """
    i = facts_of(config["instance"])
    i.role = config["credentials"]["role"]
    i.instance_id = i.instance_id or made_id("i-", box)
    if i.launch_time is None:
        i.launch_time = boot_time(now)
    i.reservation_id = i.reservation_id or made_id("r-", i.instance_id)
    derive_place(i)
    derive_hardware(i)
    derive_life_cycle(i, config["events"])
    derive_keys(i)
    derive_profile(i, config["credentials"]["extended"])
    i.interfaces = describe_interfaces(config, i)
    associations = [pair for nic in i.interfaces for pair in nic.associations]
    for interface in i.interfaces:
        leave_out_what_is_empty(interface)
    i.associations = associations  # of all interfaces, while `i` has been the first of them
    i.tags = None
    if config["metadata-options"]["instance-metadata-tags"] == "enabled":
        i.tags = [Instance(tag=tag, tag_value=value) for tag, value in config["tags"].items()]
    return i


def facts_of(section: dict) -> Instance:
    """Turn the keys of a section of the configuration into facts."""
    return Instance(**{key.replace("-", "_"): value for key, value in section.items()})


def derive_place(i: Instance) -> None:
    """Derive region, partition, domain and the id of the zone from the availability zone.

    Ids of zones: use1-az1 for us-east-1a, usw2-lax1-az1 for us-west-2-lax-1a, use1-wl1-bos-wlz1
    for us-east-1-wl1-bos-wlz-1. In regions older than 2013 each account has its own numbers; here
    a is 1.
    """
    zone = ZONE.fullmatch(i.availability_zone)
    i.region = zone["region"]
    i.partition, i.domain = PARTITIONS.get(zone["area"], ("aws", "amazonaws.com"))
    area = zone["area"].replace("-", "").replace("gov", "g").replace("iso", "i")
    direction = zone["direction"]
    for word in ("north", "south", "east", "west", "central"):
        direction = direction.replace(word, word[0])
    prefix = area + direction + zone["number"]
    if zone["local"]:
        prefix += "-" + zone["local"].replace("-", "")
    if zone["wavelength"]:
        zone_id = prefix + zone["wavelength"].replace("wlz-", "wlz")
    else:
        zone_id = "%s-az%s" % (prefix, zone_number(zone))
    i.availability_zone_id = i.availability_zone_id or zone_id


def zone_number(zone: Any) -> str:
    """Return the number of a zone, given as a match of ZONE."""
    index = ord(zone["letter"]) - ord("a")
    numbers = "" if zone["local"] else ZONE_NUMBERS.get(zone["region"], "")
    return numbers[index:index + 1] or str(index + 1)


def derive_hardware(i: Instance) -> None:
    """Derive architecture and hypervisor from the instance type; add the image and the volumes."""
    family, _, size = i.instance_type.partition(".")
    i.architecture = i.architecture or architecture_of(family)
    hypervisor = "nitro"
    if family in XEN_FAMILIES and size != "metal":
        hypervisor = "xen"
    i.system = i.system or hypervisor
    i.ami_id = i.ami_id or made_id("ami-", i.region)
    derive_volumes(i)


def architecture_of(family: str) -> str:
    """Tell the architecture of a family of instance types."""
    if family.startswith("mac"):
        return "x86_64_mac" if family == "mac1" else "arm64_mac"
    generation = family.lstrip("abcdefghijklmnopqrstuvwxyz")
    if family == "a1" or "g" in generation:  # m7g, c6gn, t4g: Graviton
        return "arm64"
    return "x86_64"


def derive_volumes(i: Instance) -> None:
    """Derive the block device mapping.

    `ami` is the whole device, such as /dev/xvda, on Xen with an EBS root only (capture).
    """
    has_ebs_root = i.root_device_type == "ebs"
    if not i.root_device:
        i.root_device = "/dev/xvda" if has_ebs_root else "/dev/sda1"
    i.root_name = i.root_device
    if i.system == "nitro" or not has_ebs_root:
        i.root_name = i.root_device.rpartition("/")[2]
    i.volumes = numbered_volumes("ebs", i.ebs_volumes, 1)
    i.volumes += numbered_volumes("ephemeral", i.ephemeral_volumes, 0)


def numbered_volumes(kind: str, volumes: List[Tuple[str, str]], number: int) -> List[Instance]:
    """Name volumes, given as (number or "", device); one without a number gets the next."""
    named = []
    for given, device in volumes:
        number = int(given or number)
        named.append(Instance(volume="%s%d" % (kind, number), device=device))
        number += 1
    return named


def derive_life_cycle(i: Instance, events: dict) -> None:
    """Derive the life cycle: an instance that is to be interrupted is a spot instance."""
    usual = "spot" if events["spot-interruption"] else "on-demand"
    i.instance_life_cycle = i.instance_life_cycle or usual


def derive_keys(i: Instance) -> None:
    """Make a public key for a key name, or take the names from the comments of the keys."""
    keys = i.public_key
    if keys is None:
        keys = [made_key(i.key_name)] if i.key_name else []
    names = [key.partition(" ")[2].partition(" ")[2] for key in keys]  # after type and data
    if keys and i.key_name:
        names[0] = i.key_name
    if not all(names):
        raise ConfigError("has no name; write key-name = my-key, or a comment after the key",
                          "instance", "public-key")
    i.public_keys = [
        Instance(key_number=number, public_key=key) for number, key in enumerate(keys)]
    i.numbered_keys = ["%d=%s" % numbered for numbered in enumerate(names)]


def made_key(name: str) -> str:
    """Make a public key, always the same for the same name."""
    data = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + digest("key", name)
    return "ssh-ed25519 %s %s" % (base64.b64encode(data).decode(), name)


def derive_profile(i: Instance, extended: str) -> None:
    """Derive ARN and id of the instance profile, which has the name of the role by default."""
    i.extended_role = i.role if extended == "yes" else ""
    profile = i.instance_profile or i.role
    if not profile:
        i.instance_profile_arn = i.instance_profile_id = ""
        return
    i.instance_profile_arn = profile
    if not profile.startswith("arn:"):
        i.instance_profile_arn = "arn:%s:iam::%s:instance-profile/%s" % (
            i.partition, i.account_id, profile.lstrip("/"))
    owner = i.instance_profile_arn.split(":")[4]
    made = digest(i.instance_profile_arn)
    i.instance_profile_id = i.instance_profile_id or (
        "AIPA" + account_characters(owner, made) + key_characters(made[-1:]))


def boot_time(now: float) -> int:
    """Return the time of the last boot, so that pendingTime survives a restart of the service."""
    try:
        with open("/proc/stat") as file:
            return int(re.search("^btime ([0-9]+)", file.read(), re.MULTILINE).group(1))
    except (OSError, AttributeError):
        return int(now)


def describe_interfaces(config: dict, i: Instance) -> List[Instance]:
    """Derive the facts of all network interfaces; `i` itself has those of the first one."""
    i.device_number = 0
    interfaces = []
    for section in ["instance"] + [name for name in config if name.startswith("interface ")]:
        nic = facts_of(config[section]) if interfaces else i
        seed = i.instance_id + section
        derive_addresses(nic, i, interfaces, seed)
        derive_local_hostname(nic, i)
        derive_public_addresses(nic, i, interfaces, seed)
        derive_network(nic, i, interfaces)
        if any(nic.mac == other.mac for other in interfaces):
            raise ConfigError("%s is also the MAC of another interface; each needs its own"
                              % nic.mac, section, "mac")
        interfaces.append(nic)
    derive_cards(interfaces)
    for nic in interfaces:
        nic.subnet_ipv6_cidr_blocks = shown_blocks(nic.subnet_ipv6_cidr_blocks, i.system)
        nic.vpc_ipv6_cidr_blocks = shown_blocks(nic.vpc_ipv6_cidr_blocks, i.system)
    return interfaces


def derive_cards(interfaces: List[Instance]) -> None:
    """Number the devices of each network card; where one names its card, all of them do.

    "device-number is 0 on each network card" (amazon-ec2-net-utils#104).
    """
    has_cards = any(nic.network_card != "" for nic in interfaces)
    last = {}
    for nic in interfaces:
        if has_cards:
            nic.network_card = nic.network_card or 0
        if nic.device_number is None:
            nic.device_number = 1 + last.get(nic.network_card, -1)
        last[nic.network_card] = max(nic.device_number, last.get(nic.network_card, -1))


def shown_blocks(blocks: List[str], system: str) -> List[str]:
    """Write IPv6 blocks as the hypervisor does: Nitro has all eight groups (captures)."""
    if system != "nitro":
        return blocks
    shown = []
    for block in blocks:
        network = ipaddress.IPv6Network(block)
        groups = network.network_address.exploded.split(":")
        address = ":".join("%x" % int(group, 16) for group in groups)
        shown.append("%s/%d" % (address, network.prefixlen))
    return shown


def derive_addresses(nic: Instance, first: Instance, others: List[Instance], seed: str) -> None:
    """Derive MAC, id and private addresses of an interface."""
    nic.mac = nic.mac or "0e:" + ":".join("%02x" % byte for byte in digest("mac", seed)[:5])
    nic.interface_id = nic.interface_id or made_id("eni-", seed)
    if nic.local_ipv4 is None:
        nic.local_ipv4 = free_address(block_for_addresses(nic, first, others), others, seed)
    nic.first_ipv4 = first_of(nic.local_ipv4)
    nic.first_ipv6 = first_of(nic.ipv6)


def block_for_addresses(nic: Instance, first: Instance, others: List[Instance]) -> str:
    """Return the block in which an interface gets its address, "" if there is none."""
    if nic.subnet_ipv4_cidr_block:
        return nic.subnet_ipv4_cidr_block
    if nic.vpc_ipv4_cidr_blocks:
        return nic.vpc_ipv4_cidr_blocks[0]
    if others:
        return first.subnet_ipv4_cidr_block
    return DEFAULT_VPC_BLOCK


DEFAULT_VPC_BLOCK = "172.31.0.0/16"  # of a default VPC


def free_address(block: str, others: List[Instance], seed: str) -> List[str]:
    """List one free address of a block; EC2 keeps the first four of each subnet and the last."""
    if not block:
        return []
    network = ipaddress.ip_network(block)
    size = network.num_addresses
    taken = [address for other in others for address in other.local_ipv4]
    begin = made_number(0, size, "address", seed)
    for step in range(size):
        offset = min(4, size - 1) + (begin + step) % max(1, size - 5)
        address = str(network[offset])
        if address not in taken:
            return [address]
    return []


def derive_local_hostname(nic: Instance, first: Instance) -> None:
    """Derive the local host name from the address, or from the instance id without one."""
    if nic.local_hostname is None:
        domain = first.region + ".compute.internal"
        if first.region == "us-east-1":
            domain = "ec2.internal"
        host = first.instance_id
        if nic.first_ipv4:
            host = "ip-" + nic.first_ipv4.replace(".", "-")
        nic.local_hostname = "%s.%s" % (host, domain)


def derive_public_addresses(
    nic: Instance, first: Instance, others: List[Instance], seed: str
) -> None:
    """Give the first interface a public address; derive the host name of any public address.

    The first public address belongs to the first private one, and so on.
    """
    if nic.public_ipv4 is None:
        nic.public_ipv4 = []
        if nic.first_ipv4 and not others:
            nic.public_ipv4 = ["203.0.113.%d" % made_number(1, 254, "public", seed)]  # RFC 5737
    nic.first_public_ipv4 = first_of(nic.public_ipv4)
    if nic.public_hostname is None:
        nic.public_hostname = ""
        if nic.first_public_ipv4:
            place = first.region + ".compute"
            if first.region == "us-east-1":
                place = "compute-1"
            nic.public_hostname = "ec2-%s.%s.%s" % (
                nic.first_public_ipv4.replace(".", "-"), place, first.domain)
    nic.associations = []
    for public, private in itertools.zip_longest(nic.public_ipv4, nic.local_ipv4):
        if public and nic.local_ipv4:
            nic.associations.append(Instance(
                mac=nic.mac, associated_public=public,
                associated_private=private or nic.local_ipv4[-1]))


def derive_network(nic: Instance, first: Instance, others: List[Instance]) -> None:
    """Derive security groups, VPC and subnet: those of the first interface where they fit."""
    nic.owner_id = first.account_id
    nic.security_groups = nic.security_groups or first.security_groups or ["default"]
    nic.security_group_ids = nic.security_group_ids or group_ids(nic, first)
    nic.vpc_id = nic.vpc_id or first.vpc_id or made_id("vpc-", nic.owner_id, first.region)
    if nic.vpc_ipv4_cidr_blocks is None:
        nic.vpc_ipv4_cidr_blocks = blocks_of_vpc(nic.first_ipv4, first.vpc_ipv4_cidr_blocks)
    if nic.vpc_ipv6_cidr_blocks is None:
        nic.vpc_ipv6_cidr_blocks = blocks_of(nic.first_ipv6, first.vpc_ipv6_cidr_blocks, 56)
    nic.vpc_ipv4_cidr_block = first_of(nic.vpc_ipv4_cidr_blocks)
    if nic.subnet_ipv4_cidr_block is None:
        bits = subnet_bits(20, nic.vpc_ipv4_cidr_blocks)
        shared = []
        if first.subnet_ipv4_cidr_block:
            shared = [first.subnet_ipv4_cidr_block]
        nic.subnet_ipv4_cidr_block = first_of(blocks_of(nic.first_ipv4, shared, bits))
    if nic.subnet_ipv6_cidr_blocks is None:
        bits = subnet_bits(64, nic.vpc_ipv6_cidr_blocks)
        shared = first.subnet_ipv6_cidr_blocks
        nic.subnet_ipv6_cidr_blocks = blocks_of(nic.first_ipv6, shared, bits)
    nic.subnet_id = nic.subnet_id or subnet_id(nic, first, others)


def group_ids(nic: Instance, first: Instance) -> List[str]:
    """Make ids of security groups; a group that the first interface has too keeps its id."""
    known = dict(zip(first.security_groups or (), first.security_group_ids or ()))
    ids = []
    for group in nic.security_groups:
        ids.append(known.get(group) or made_id("sg-", nic.owner_id, first.region, group))
    return ids


def blocks_of_vpc(address: str, shared: Optional[List[str]]) -> List[str]:
    """List the IPv4 blocks of the VPC; it has some for an IPv6-only interface too (captures)."""
    if address:
        return blocks_of(address, shared, 16)
    if shared is None:
        return [DEFAULT_VPC_BLOCK]
    return list(shared)


def blocks_of(address: str, shared: Optional[List[str]], bits: int) -> List[str]:
    """List the shared blocks if an address is in one of them, else a block of its own."""
    if not address:
        return []
    for block in shared or ():
        if ipaddress.ip_address(address) in ipaddress.ip_network(block):
            return list(shared)
    return [str(ipaddress.ip_network("%s/%d" % (address, bits), strict=False))]


def subnet_bits(usual: int, vpc_blocks: List[str]) -> int:
    """Return the usual prefix length of a subnet, or that of a smaller VPC."""
    if not vpc_blocks:
        return usual
    return max(usual, ipaddress.ip_network(vpc_blocks[0]).prefixlen)


def subnet_id(nic: Instance, first: Instance, others: List[Instance]) -> str:
    """Return the id of a subnet: that of another interface in the same block, or a made one."""
    ipv4_block, ipv6_blocks = nic.subnet_ipv4_cidr_block, nic.subnet_ipv6_cidr_blocks
    for other in others:
        if ipv4_block and ipv4_block == other.subnet_ipv4_cidr_block:
            return other.subnet_id
        if ipv6_blocks and ipv6_blocks == other.subnet_ipv6_cidr_blocks:
            return other.subnet_id
    block = ipv4_block or "\n".join(ipv6_blocks)
    return made_id("subnet-", nic.vpc_id, first.availability_zone, block)


def leave_out_what_is_empty(facts: Instance) -> None:
    """Replace empty facts by None, so that the rows of ROUTES that need them are absent."""
    for name, value in vars(facts).items():
        if value in ("", []):
            setattr(facts, name, None)


def first_of(items: List[str]) -> str:
    """Return the first of a list, "" of an empty one."""
    return items[0] if items else ""


def made_id(prefix: str, *seed: str) -> str:
    """Make an id such as i-0123456789abcdef0, always the same for the same seed."""
    return prefix + "0" + digest(prefix, *seed).hex()[:16]


def made_number(lowest: int, highest: int, *seed: str) -> int:
    """Make a number in a range, both ends included, always the same for the same seed."""
    return lowest + int.from_bytes(digest(*seed)[:8], "big") % (highest - lowest + 1)


def account_characters(account_id: str, data: bytes) -> str:
    """Make the 16 characters after ASIA, AKIA or AIPA, 80 bits in base32.

    AWS tools read the account back (`aws sts get-access-key-info`).

        1 | account id 40 bits | 39 bits of the data
    """
    bits = 1 << 79 | int(account_id) << 39 | int.from_bytes(data[:5], "big") >> 1
    return base64.b32encode(bits.to_bytes(10, "big")).decode()


def key_characters(data: bytes) -> str:
    """Turn each byte into one of the characters that AWS uses in the ids of keys and profiles."""
    return "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[byte % 32] for byte in data)


def digest(*seed: str) -> bytes:
    """Hash texts to 32 bytes."""
    return hashlib.blake2b("\0".join(seed).encode(), digest_size=32).digest()


# ---------------------------------------------------------------- events ----------------------
#
# A moment is a function from the time at which its text was first read to a time, both in seconds
# since the epoch: "+90s" adds 90, while 2026-12-01T08:00:00Z is the same whatever it is given.

Moment = Callable[[float], float]


def never(start: float) -> float:
    """Stand for a moment that does not come."""
    return FOREVER


# Code of a scheduled event -> its description.
MAINTENANCE_CODES = {
    "instance-reboot": "scheduled reboot",
    "system-reboot": "scheduled reboot",
    "system-maintenance": "scheduled maintenance",
    "instance-stop": "The instance is running on degraded hardware",
    "instance-retirement": "The instance is running on degraded hardware",
}

LIFECYCLE_STATES = (
    "Detached", "InService", "Standby", "Terminated",
    "Warmed:Hibernated", "Warmed:Running", "Warmed:Stopped", "Warmed:Terminated",
)
SPOT_NOTICE = 120  # seconds between the notice of an interruption and the interruption

# The facts that events change, as they are without an event.
FACTS_WITHOUT_EVENTS = {
    "spot_notice": None,
    "spot_termination_time": None,
    "rebalance_notice": None,
    "target_lifecycle_state": None,
    "scheduled_events": "[]",
    "past_events": "[]",
}


class ScheduledEvent(NamedTuple):
    """One event of scheduled-maintenance, upcoming or over."""

    appears: Moment
    code: str
    not_before: Moment
    not_after: Optional[Moment]
    end_state: str  # completed, or canceled
    ends: Moment


class Change(NamedTuple):
    """A change that an event made: when, until when more follows, and words for the log."""

    begins: float
    ends: float
    words: str


class Timeline:
    """The present as an event sees it: which moments have come, and when the next one will."""

    def __init__(self, start: float, now: float):
        self.start = start
        self.now = now
        self.next_change = FOREVER
        self.changes = []

    def has_come(self, moment: Moment) -> bool:
        """Tell whether a moment has come; one that has not is a change to wait for."""
        at = moment(self.start)
        if at > self.now:
            self.next_change = min(self.next_change, at)
        return at <= self.now

    def note(self, begins: float, ends: float, words: str) -> None:
        """Note a change that has come."""
        self.changes.append(Change(begins, ends, words))


class Event:
    """One line of [events]; `start` is when its text was first read, from which "+90s" counts.

    `instance` is the NAME of [events NAME].
    """

    def __init__(self, name: str, value: Any, start: float, text: str = "", instance: str = ""):
        self.name = name
        self.instance = instance
        self.text = text
        self._value = value
        self._start = start
        self._told = -FOREVER  # `news` has reported its changes up to then

    @property
    def full_name(self) -> str:
        """Name the event, with its instance if it has one."""
        return "%s of %s" % (self.name, self.instance) if self.instance else self.name

    def facts(self, now: float) -> Tuple[dict, Timeline]:
        """Compute the facts that the event changes, and a Timeline that knows when and how."""
        timeline = Timeline(self._start, now)
        return EVENTS[self.name](self._value, timeline), timeline

    def news(self, now: float) -> List[Change]:
        """Return the changes since the last call."""
        _, timeline = self.facts(now)
        changes = [change for change in timeline.changes if change.begins > self._told]
        self._told = max(now, self._told)
        return changes

    def has_begun(self, now: float) -> bool:
        """Tell whether the event changes a fact now."""
        facts, _ = self.facts(now)
        return any(fact != FACTS_WITHOUT_EVENTS[key] for key, fact in facts.items())

    def was_over(self) -> bool:
        """Tell whether all times of the event were past when it was first read."""
        _, timeline = self.facts(self._start)
        is_past = all(change.ends < self._start for change in timeline.changes)
        return is_past and timeline.next_change == FOREVER


def event_facts(events: Iterable[Event], now: float) -> Tuple[dict, float]:
    """Compute the facts of [events] now, and the time at which they will change.

    The times in a notice are fixed from the beginning of its event on.
    """
    facts, next_change = dict(FACTS_WITHOUT_EVENTS), FOREVER
    for event in events:
        changed, timeline = event.facts(now)
        facts.update(changed)
        next_change = min(next_change, timeline.next_change)
    return facts, next_change


def spot_facts(event: Tuple[Moment, str, Optional[Moment]], timeline: Timeline) -> dict:
    """Announce that a spot instance is interrupted; with hibernation there is no warning.

    EC2 User Guide, "Spot Instance interruption notices".
    """
    notice, action, interruption = event
    if not timeline.has_come(notice):
        return {}
    begins = notice(timeline.start)
    ends = begins if action == "hibernate" else begins + SPOT_NOTICE
    if interruption:
        ends = interruption(timeline.start)
    at = utc(ends)
    timeline.note(begins, ends, "%s at %s" % (action, at))
    facts = {"spot_notice": json.dumps({"action": action, "time": at})}
    if action == "terminate":
        facts["spot_termination_time"] = at
    return facts


def rebalance_facts(event: Tuple[Moment, Moment], timeline: Timeline) -> dict:
    """Recommend rebalancing (EC2 User Guide, "EC2 instance rebalance recommendations")."""
    appears, notice = event
    if not timeline.has_come(appears):
        return {}
    begins, at = appears(timeline.start), notice(timeline.start)
    timeline.note(begins, at, "noticeTime " + utc(at))
    return {"rebalance_notice": json.dumps({"noticeTime": utc(at)})}


def lifecycle_facts(states: List[Tuple[Moment, str]], timeline: Timeline) -> dict:
    """Tell the state of the instance in its Auto Scaling group: the last one that has come."""
    facts = {}
    for moment, state in sorted(states, key=lambda row: row[0](timeline.start)):
        if timeline.has_come(moment):
            begins = moment(timeline.start)
            timeline.note(begins, begins, state)
            facts["target_lifecycle_state"] = state
    return facts


def maintenance_facts(events: List[ScheduledEvent], timeline: Timeline) -> dict:
    """List the scheduled events, and those that are over (EC2 User Guide, "Scheduled events")."""
    scheduled, past = [], []
    for number, event in enumerate(events):
        is_over = timeline.has_come(event.ends)
        if timeline.has_come(event.appears):
            document = event_document(event, number, timeline.start, is_over)
            listed = past if is_over else scheduled
            listed.append(document)
            note_maintenance(event, is_over, timeline)
    return {"scheduled_events": event_list(scheduled), "past_events": event_list(past)}


def note_maintenance(event: ScheduledEvent, is_over: bool, timeline: Timeline) -> None:
    """Note that a scheduled event has appeared, and its end if that has come."""
    begins, ends = event.appears(timeline.start), event.ends(timeline.start)
    at = utc(event.not_before(timeline.start))
    timeline.note(begins, ends, "%s at %s" % (event.code, at))
    if is_over:
        timeline.note(ends, ends, "%s %s" % (event.code, event.end_state))


def event_document(event: ScheduledEvent, number: int, start: float, is_over: bool) -> str:
    """Render a scheduled event; one that is over says so at the head of its description."""
    description = MAINTENANCE_CODES[event.code]
    state = "active"
    if is_over:
        state = event.end_state
        description = "[%s] %s" % (state.capitalize(), description)
    appeared = str(int(event.appears(start)))
    fields = {
        "NotBefore": event_time(event.not_before(start)),
        "Code": event.code,
        "Description": description,
        "EventId": made_id("instance-event-", appeared, str(number)),
    }
    if event.not_after:
        fields["NotAfter"] = event_time(event.not_after(start))
    return pretty_json({**fields, "State": state})


def event_time(seconds: float) -> str:
    """Write a time in the form of scheduled events: 8 May 2020 16:00:00 GMT (capture)."""
    return time.strftime("%d %b %Y %H:%M:%S GMT", time.gmtime(seconds)).lstrip("0")


def event_list(documents: List[str]) -> str:
    """Render a list of events in the layout of captures; that of the EC2 User Guide differs."""
    if not documents:
        return "[]"
    return "[ %s ]" % ", ".join(documents)


# Key of [events] -> the function that turns its value into facts.
EVENTS = {
    "spot-interruption": spot_facts,
    "rebalance-recommendation": rebalance_facts,
    "scheduled-maintenance": maintenance_facts,
    "target-lifecycle-state": lifecycle_facts,
}


# ---------------------------------------------------------------- faults ----------------------

FAULT_MESSAGE = "fault %s in the configuration of fake-metadata"  # in documents of failures

# Action with a value -> how the log shows it.
ACTION_WORDS = {
    "delay": "delay {:g}s",
    "status": "{}",
    "code": "code {[0]}",
    "truncate": "truncate {}",
}


class Fault:
    """A failure on demand: one line of [faults], parsed by `fault_rule`.

    `start` is when its text was first read. `actions` is {word: value}; FAULT_ACTIONS lists the
    words. The handler carries them out: some in `apply_faults`, "code" and "expired" in `do_GET`,
    "empty" and "truncate" in `shorten`.
    """

    def __init__(self, name: str, rule: dict, start: float, text: str = ""):
        self.name = name
        self.text = text
        self.actions = rule["actions"]
        self.instance = rule.get("instance")  # NAME of [instance NAME]; None: of any
        self._pieces = canonical_path(rule["path"]).split("*")
        self._begin, self._end = -FOREVER, FOREVER
        if "from" in rule:
            self._begin = rule["from"](start)
        elif "for" in rule:
            self._begin = start
        if "for" in rule:
            self._end = self._begin + rule["for"]
        self._every = rule.get("every")
        self._times = rule.get("times", FOREVER)
        self._probability = rule.get("probability", 1)
        self._random = random.Random(name)  # the same in each run: a test that fails fails again

    def matches(
        self, path: str, now: float, has_token: bool, found: Any, instance: str = ""
    ) -> bool:
        """Tell whether a request matches this fault, and count it if it does."""
        if not self.is_on(now) or self.instance not in (None, instance):
            return False
        if "refuse-token" in self.actions and not has_token:
            return False
        if not self.concerns(path, found) or self._random.random() >= self._probability:
            return False
        self._times -= 1
        return True

    def is_on(self, now: float) -> bool:
        """Tell whether this fault affects the requests that it matches now."""
        if self._every and now > self._begin:
            now = self._begin + (now - self._begin) % self._every
        return self._begin <= now < self._end and self._times > 0

    def is_over(self, now: float) -> bool:
        """Tell whether this fault has no further effect."""
        return self._times <= 0 or (self._end <= now and not self._every)

    def concerns(self, path: str, found: Any) -> bool:
        """Tell whether the fault is for a path, and the document there has what it changes."""
        return consists_of(path, self._pieces) and self._changes(path, found)

    def _changes(self, path, found):
        """Tell whether a document has what the actions change: a body, a "Code", credentials."""
        if "empty" in self.actions or "truncate" in self.actions:
            return bool(found) or path == TOKEN_PATH
        if "code" in self.actions and b'"Code" : ' in getattr(found, "body", b""):
            return True
        if "code" in self.actions or "expired" in self.actions:
            return isinstance(found, RotatingDocument)
        return True


def consists_of(text: str, pieces: List[str]) -> bool:
    """Tell whether a text consists of pieces, with anything between one and the next.

    By hand, since a regular expression with several ".*" tries all their combinations.
    """
    if len(pieces) == 1:
        return text == pieces[0]
    first, *others, last = pieces
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in others:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


class Strike(NamedTuple):
    """What an action does to a request: its value, the name of its fault, words for the log."""

    value: Any
    fault: str
    words: str


def merged_actions(faults: Iterable[Fault]) -> Dict[str, Strike]:
    """Merge the actions of faults: delays add up; of any other action the first value wins."""
    actions = {}
    for fault in faults:
        for action, value in fault.actions.items():
            shown = ACTION_WORDS.get(action, action).format(value)
            words = "fault %s: %s" % (fault.name, shown)
            if action not in actions:
                actions[action] = Strike(value, fault.name, words)
            elif action == "delay":
                before = actions[action]
                actions[action] = Strike(
                    before.value + value, before.fault, "%s; %s" % (before.words, words))
    return actions


def kept_or_made(
    make: Callable, values: dict, texts: Dict[str, str], former: Iterable[Any], start: float
) -> list:
    """Make an Event, or a Fault, of each key that has a value.

    One of `former` with the same text goes on instead: "+90s" counts from when it was first read,
    and so do its times and its chances.
    """
    kept = {(one.name, one.text): one for one in former}
    lines = [(name, texts[name], value) for name, value in values.items() if value]
    return [kept.get((name, text)) or make(name, value, start, text)
            for name, text, value in lines]


# ---------------------------------------------------------------- credentials -----------------

class SourceError(Exception):
    """A source gave no credentials; the text goes to the log and holds no secret."""


class Keys(NamedTuple):
    """The keys that a source returns. `remark` goes to the log."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""
    expiration: Optional[float] = None  # seconds since the epoch; None: the source gives none
    remark: str = ""


class Credentials(NamedTuple):
    """One generation of credentials; times in seconds since the epoch."""

    keys: Keys
    last_updated: float
    expiration: float


def credentials_document(credentials: Credentials, account_id: str = "") -> str:
    """Render credentials in the form of security-credentials/ROLE (capture)."""
    keys = credentials.keys
    fields = {
        "Code": "Success",
        "LastUpdated": utc(credentials.last_updated),
        "Type": "AWS-HMAC",
        "AccessKeyId": keys.access_key_id,
        "SecretAccessKey": keys.secret_access_key,
        "Token": keys.session_token,
        "Expiration": utc(credentials.expiration),
    }
    if account_id:
        fields["AccountId"] = account_id
    return pretty_json(fields)


def task_document(credentials: Credentials, role_arn: str) -> str:
    """Render credentials as the ECS agent does (amazon-ecs-agent, credentials/manager.go)."""
    return compact_json({
        "RoleArn": role_arn,
        "AccessKeyId": credentials.keys.access_key_id,
        "SecretAccessKey": credentials.keys.secret_access_key,
        "Token": credentials.keys.session_token,
        "Expiration": utc(credentials.expiration),
    })


def pod_document(credentials: Credentials, account_id: str) -> str:
    """Render credentials as the EKS agent does (eks-pod-identity-agent, credentials/model.go)."""
    return compact_json({
        "AccessKeyId": credentials.keys.access_key_id,
        "SecretAccessKey": credentials.keys.secret_access_key,
        "Token": credentials.keys.session_token,
        "AccountId": account_id,
        "Expiration": utc(credentials.expiration),
    })


def local_document(credentials: Credentials, role_arn: str) -> str:
    """Render credentials as ECS local container endpoints do (their handlers/types.go)."""
    return compact_json({
        "AccessKeyId": credentials.keys.access_key_id,
        "Expiration": utc(credentials.expiration),
        "RoleArn": role_arn,
        "SecretAccessKey": credentials.keys.secret_access_key,
        "Token": credentials.keys.session_token,
    }) + "\n"


def compact_json(fields: Dict[str, Any]) -> str:
    """Write a JSON object without blanks."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


IAM_HELP = (
    "Please see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/"
    "troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.")

# Code -> message of the real service (captures, with the two blanks).
FAILURE_MESSAGES = {
    "AssumeRoleUnauthorizedAccess": "EC2 cannot assume the role {role}.  " + IAM_HELP,
    "InstanceProfileNotFound":
        "Instance Profile with Id {instance_profile_id} cannot be found.  " + IAM_HELP,
}


def failure_document(code: str, message: str, now: float) -> str:
    """Render the document in place of credentials (IAM User Guide, troubleshooting EC2 roles)."""
    return pretty_json({"Code": code, "Message": message, "LastUpdated": utc(now)})


def expired_copy(document: Document, now: float) -> Document:
    """Copy a document of credentials, with times that make it expired."""
    text = document.body.decode()
    for key, seconds in (("LastUpdated", now - 7 * 3600), ("Expiration", now - 3600)):
        text = re.sub(r'("%s" ?: ?)"[^"]*"' % key, r'\1"%s"' % utc(seconds), text)
    return Document(text, document.content_type, now)


# The fetch function of a source takes the settings of a role (see role_settings), a function such
# as os.urandom, and an Event that is set once the keys are no longer wanted. It returns Keys or
# raises SourceError.

Randomness = Callable[[int], bytes]


def generate_keys(settings: dict, randomness: Randomness, cancelled: threading.Event) -> Keys:
    """Make fake keys of realistic form and length."""
    real_beginning = b"!\n\torigin_ec"  # in base64 IQoJb3JpZ2luX2Vj, as in every real one
    return Keys(
        access_key_id="ASIA" + account_characters(settings["account-id"], randomness(5)),
        secret_access_key=base64.b64encode(randomness(30)).decode(),
        session_token=base64.b64encode(real_beginning + randomness(756)).decode())


def static_keys(settings: dict, randomness: Randomness, cancelled: threading.Event) -> Keys:
    """Return the keys of the configuration."""
    return Keys(
        settings["access-key-id"], settings["secret-access-key"], settings["session-token"])


def profile_keys(settings: dict, randomness: Randomness, cancelled: threading.Event) -> Keys:
    """Return the keys of a profile of the AWS CLI, or of its credential_process."""
    name, files = settings["profile"], profile_files(settings)
    for path in files:
        fields = read_profile(path, name, cancelled)
        if "credential_process" in fields and "aws_access_key_id" not in fields:
            command = fields["credential_process"]
            return keys_of_command(command, settings["timeout"], cancelled)
        if "aws_access_key_id" in fields or "aws_secret_access_key" in fields:
            return keys_of_profile(fields, path)
    raise SourceError(
        "no profile %r with an access key ID in %s; %s" % (
            name, " or ".join(map(with_absence, files)), profile_remedy(name, files)))


def with_absence(path: str) -> str:
    """Name a file, and say so if it does not exist."""
    return path if os.path.exists(path) else path + " (no such file)"


def profile_remedy(name: str, files: Iterable[str]) -> str:
    """Say what to do where a profile has no keys; on a box the service has no home."""
    if is_service_user() and not any(map(os.path.exists, files)):
        return copy_remedy("~/.aws/credentials")
    return ("for SSO and assumed roles: source = process, and command = "
            "aws configure export-credentials --profile %s --format process" % shlex.quote(name))


def copy_remedy(words: str) -> str:
    """Say how to copy a file, given as a shell has it, for the user of the service on a box."""
    return "remedy: sudo install -o %s -m 400 %s %s; then write file = %s in %s" % (
        SERVICE_USER, words, BOX_CREDENTIALS, BOX_CREDENTIALS, "/etc/fake-metadata.conf")


def is_service_user() -> bool:
    """Tell whether this process runs as the user of the service on a box."""
    return name_of_user(os.geteuid()) == SERVICE_USER


def process_keys(settings: dict, randomness: Randomness, cancelled: threading.Event) -> Keys:
    """Return the keys that a command prints."""
    return keys_of_command(settings["command"], settings["timeout"], cancelled)


def profile_files(settings: dict) -> Tuple[str, ...]:
    """List the files to search for a profile, as the AWS CLI does."""
    if settings["file"]:
        return (os.path.expanduser(settings["file"]),)
    return (
        os.path.expanduser(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"),
        os.path.expanduser(os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config"),
    )


class Source(NamedTuple):
    """How credentials are fetched, and what that takes.

    A source that reads files or runs commands blocks, so it runs in a thread of its own: in the
    thread of the server it would stop the service for everybody.
    """

    fetch: Callable[[dict, Randomness, threading.Event], Keys]
    blocks: bool
    needs: Tuple[str, ...] = ()  # settings without which it cannot work
    files: Callable[[dict], Tuple[str, ...]] = lambda settings: ()  # one changes: fetch again


SOURCES = {
    "generate": Source(generate_keys, blocks=False),
    "static": Source(static_keys, blocks=False, needs=("access-key-id", "secret-access-key")),
    "profile": Source(profile_keys, blocks=True, files=profile_files),
    "process": Source(process_keys, blocks=True, needs=("command",)),
}


def read_profile(path: str, name: str, cancelled: threading.Event) -> Dict[str, str]:
    """Read a profile from a shared credentials or config file, {} if it is not in there."""
    parser = configparser.RawConfigParser(strict=False, default_section="")
    try:
        content = read_settled(path, cancelled)
        parser.read_string(content.decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SourceError("%s: %s" % (path, why_unreadable(path, error)))
    except (configparser.Error, UnicodeDecodeError):
        raise SourceError("%s is not a credentials file, or is incomplete" % path)
    for section in (name, "profile " + name):  # the second is the form of ~/.aws/config
        if parser.has_section(section):
            return dict(parser.items(section))
    return {}


def why_unreadable(path: str, error: OSError) -> str:
    """Say why a credentials file cannot be read, and what helps the service on a box."""
    if isinstance(error, PermissionError) and is_service_user():
        return "%s for user %s; %s" % (error.strerror, SERVICE_USER, copy_remedy(shlex.quote(path)))
    return error.strerror


def read_settled(path: str, cancelled: threading.Event) -> bytes:
    """Read a credentials file, unless somebody is writing to it.

    Otherwise a new key id could be paired with an old secret.
    """
    before = fingerprint([path])
    cancelled.wait(SETTLE_SECONDS)
    content = read_file(path, MAX_SOURCE_BYTES + 1)
    if len(content) > MAX_SOURCE_BYTES:
        raise SourceError("%s is larger than %d bytes" % (path, MAX_SOURCE_BYTES))
    if fingerprint([path]) != before:
        raise SourceError("%s is being written" % path)
    return content


def fingerprint(paths: Iterable[str]) -> list:
    """Return a value that changes when a file is written, replaced, deleted or chmodded."""
    marks = []
    for path in paths:
        try:
            status = os.stat(path)
            marks.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except OSError as error:
            marks.append(error.errno)
    return marks


def read_file(path: str, limit: int = -1) -> bytes:
    """Read a file, up to a limit. Raises OSError, also for a pipe: reading it could block."""
    with open(path, "rb", opener=open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(limit)


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file without blocking, even if it is a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def keys_of_profile(fields: Dict[str, str], path: str) -> Keys:
    """Take the keys from a profile, under the names that AWS tools give them."""
    remark = ""
    if os.stat(path).st_mode & stat.S_IROTH:
        remark = readable_by_others(path)
    return checked_keys(
        fields.get("aws_access_key_id"),
        fields.get("aws_secret_access_key"),
        fields.get("aws_session_token") or fields.get("aws_security_token"),
        fields.get("aws_expiration") or fields.get("x_security_token_expires"),
        remark)


def readable_by_others(path: str) -> str:
    """Say that a file with secrets in it is open to all users, and what to type."""
    return "other users can read the secrets in %s; remedy: chmod o-r %s" % (
        path, shlex.quote(path))


def keys_of_command(command: str, timeout: float, cancelled: threading.Event) -> Keys:
    """Run a command that speaks the credential_process protocol (AWS SDK reference)."""
    output = run_command(command, timeout, cancelled)
    try:
        fields = json.loads(output.decode("utf-8"))
    except (ValueError, RecursionError):
        raise SourceError("the command did not print JSON")
    if not isinstance(fields, dict) or fields.get("Version") != 1:
        raise SourceError('the command did not print {"Version": 1, ...}')
    return checked_keys(fields.get("AccessKeyId"), fields.get("SecretAccessKey"),
                        fields.get("SessionToken"), fields.get("Expiration"))


ACCESS_KEY_ID_FORM = re.compile("[A-Z0-9]{16,128}")
SECRET_FORM = re.compile("[!-~]+")  # of secret access keys and session tokens


def checked_keys(access_key_id: Any, secret_access_key: Any, session_token: Any,
                 expiration: Any, remark: str = "") -> Keys:
    """Make Keys from the fields of a source. Raises SourceError if they are incomplete.

    Session token and expiration may be None or "".
    """
    check_key("access key ID", access_key_id, ACCESS_KEY_ID_FORM)
    check_key("secret access key", secret_access_key, SECRET_FORM)
    if session_token in (None, ""):
        session_token = ""
    else:
        check_key("session token", session_token, SECRET_FORM)
    expires = None
    if expiration not in (None, ""):
        try:
            expires = timestamp(expiration)
        except (ValueError, TypeError):
            raise SourceError(
                "the expiration is not an ISO 8601 time, such as 2026-12-01T08:00:00Z")
    return Keys(access_key_id, secret_access_key, session_token, expires, remark)


def check_key(name: str, value: Any, form: Any) -> None:
    """Refuse a value that does not have the form of a key."""
    if not isinstance(value, str) or not form.fullmatch(value):
        raise SourceError("the %s is missing or malformed" % name)


def run_command(command: str, timeout: float, cancelled: threading.Event) -> bytes:
    """Run a command without a shell and return what it prints.

    It leads a process group of its own, which is killed at the end whatever happens. Raises
    SourceError if the command fails, hangs or floods.
    """
    try:
        child = subprocess.Popen(
            shlex.split(command) or [""], bufsize=0, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env=command_environment(os.environ))
    except (OSError, ValueError) as error:
        raise SourceError("the command cannot be run: %s" % explanation_of(error))
    try:
        output = read_output(child, time.monotonic() + timeout, cancelled)
    finally:
        kill_group(child)
    if child.returncode:
        raise SourceError("the command %s; run it by hand to see why: its output may contain "
                          "secrets, and is not logged" % end_of_process(child.returncode))
    return output


def end_of_process(status: int) -> str:
    """Say how a process has failed."""
    if status < 0:
        return "was killed by signal %d" % -status
    return "failed with status %d" % status


def read_output(
    child: subprocess.Popen, deadline: float, cancelled: threading.Event
) -> bytes:
    """Wait for a command to end; return what it wrote to stdout.

    Popen.communicate would not do: it reads without a limit, and goes on until everybody who has
    inherited the pipe has closed it.
    """
    received = b""
    os.set_blocking(child.stdout.fileno(), False)
    while True:
        has_ended = child.poll() is not None  # asked first, so that its last words are read
        received += child.stdout.read(MAX_SOURCE_BYTES + 1) or b""
        if len(received) > MAX_SOURCE_BYTES:
            raise SourceError("the command printed more than %d bytes" % MAX_SOURCE_BYTES)
        if has_ended:
            return received
        if time.monotonic() > deadline:
            raise SourceError(
                "the command timed out and was killed; to allow longer, raise timeout")
        if cancelled.wait(COMMAND_POLL):
            raise SourceError("the command was stopped")


def kill_group(child: subprocess.Popen) -> None:
    """Kill a command and what it has started in its process group; close the pipe."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:  # nobody is left
        pass
    child.wait()
    child.stdout.close()


# The variables that a credential command gets: these, and those that begin with the prefixes, but
# none that lead back here: the command would ask the very service that waits for it.
COMMAND_VARIABLES = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR",
    "DBUS_SESSION_BUS_ADDRESS", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy",
)
COMMAND_PREFIXES = ("AWS_", "LC_", "XDG_", "GPG", "PASSWORD_STORE")
PREFIXES_THAT_LEAD_BACK = ("AWS_EC2_", "AWS_CONTAINER_")


def command_environment(environ: Dict[str, str]) -> Dict[str, str]:
    """Choose the variables of the environment that a credential command gets."""
    chosen = {"AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in environ.items():
        is_useful = name in COMMAND_VARIABLES or name.startswith(COMMAND_PREFIXES)
        if is_useful and not name.startswith(PREFIXES_THAT_LEAD_BACK):
            chosen[name] = value
    return chosen


class RefreshableCredentials:
    """The credentials of one role: refreshed ahead of expiry, the last good ones kept.

    There are none until the first fetch succeeds, and none again once they have expired; expired
    or incomplete ones are never given out. At most one fetch is under way. All methods are to be
    called in the thread of the server.

    `fetch(cancelled)` returns Keys or raises SourceError. Given `call_soon_threadsafe`, it runs in
    a thread of its own and hands over its outcome by that; otherwise it runs at once, in the
    caller's thread. `settings` are those of [credentials] or [role NAME]; when one of `files`
    changes, new credentials are fetched. Credentials expire by `clock`, the wall clock; attempts
    are paced by `monotonic`. `say` writes to the log; `complain` too is told why a fetch failed.
    """

    def __init__(self, name, settings, fetch, say, call_soon_threadsafe=None, files=(),
                 clock=time.time, monotonic=time.monotonic, complain=None):
        self.name = name  # for the log: see name_in_account
        self.role = name.partition(" ")[0]
        self.settings = settings
        self.pending = False  # a fetch is under way
        self.error = ""  # why the last one failed
        self._complain = complain
        self._fetch = fetch
        self._say = say
        self._call_soon_threadsafe = call_soon_threadsafe
        self._files = files
        self._clock = clock
        self._monotonic = monotonic
        self._credentials = None  # the last good ones
        self._refresh_at = 0  # wall clock
        self._refresh_again = False  # asked for while a fetch was under way
        self._failures = 0
        self._retry_at = 0  # monotonic clock, after a failure
        self._cancelled = threading.Event()
        self._thread = None
        self._fingerprint = fingerprint(files)

    def current(self) -> Optional[Credentials]:
        """Return the current credentials, None if none are valid; start a refresh if one is due."""
        now = self._clock()
        if self._is_due(now):
            self._refresh_unless_too_soon()
        credentials = self._credentials
        if credentials and now < credentials.expiration:
            return credentials
        return None

    def refresh(self) -> None:
        """Fetch new credentials now; once more after a fetch under way, which may be too old."""
        if self.pending:
            self._refresh_again = True
            return
        self.pending = True
        self._fingerprint = fingerprint(self._files)
        if not self._call_soon_threadsafe:
            self._take(self._outcome())
            return
        self._thread = threading.Thread(target=self._fetch_in_thread, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._take(SourceError(str(error)))

    def refresh_if_needed(self) -> None:
        """Refresh if a file of the source has changed, or if it is time; called each second."""
        if self._files and not self.pending and fingerprint(self._files) != self._fingerprint:
            self.refresh()
        elif self._is_due(self._clock()):
            self._refresh_unless_too_soon()

    def in_words(self) -> str:
        """Describe the current credentials and their expiry, for the log."""
        credentials = self._credentials
        if not credentials or self._clock() >= credentials.expiration:
            return "none"
        return "...%s, until %s" % (
            credentials.keys.access_key_id[-4:], utc(credentials.expiration))

    def cancel(self, wait: float = 0) -> None:
        """Stop a fetch under way and ignore its outcome; wait up to `wait` seconds for its end."""
        self._cancelled.set()
        if wait and self.pending and self._thread:
            self._thread.join(wait)

    def _is_due(self, now):
        """Tell whether new credentials are due, or the clock was set back."""
        credentials = self._credentials
        return not credentials or not credentials.last_updated - 1 <= now < self._refresh_at

    def _refresh_unless_too_soon(self):
        if not self.pending and self._monotonic() >= self._retry_at:
            self.refresh()

    def _fetch_in_thread(self):
        outcome = self._outcome()
        self._call_soon_threadsafe(functools.partial(self._take, outcome))

    def _outcome(self):
        """Fetch; return Keys or a SourceError, whatever the source raises."""
        try:
            return self._fetch(self._cancelled)
        except SourceError as error:
            return error.with_traceback(None)  # it would keep all that the source has read
        except Exception as error:
            return SourceError("internal error in the source: %s" % type(error).__name__)

    def _take(self, outcome):
        self.pending = False
        if self._cancelled.is_set():
            return
        now = self._clock()
        if isinstance(outcome, SourceError):
            self._reject(outcome, now)
        elif outcome.expiration is not None and outcome.expiration <= now:
            expired = "the credentials from the source expired at %s" % utc(outcome.expiration)
            self._reject(SourceError(expired), now)
        else:
            self._accept(outcome, now)
        if self._refresh_again:
            self._refresh_again = False
            self.refresh()

    def _accept(self, keys, now):
        expiration = keys.expiration
        if expiration is None:
            expiration = now + self.settings["lifetime"]
        former = self._credentials
        if not former or former.keys != keys or keys.expiration is None:
            remark = "; " + keys.remark if keys.remark else ""
            self._say("new credentials for %s: ...%s, until %s%s" % (
                self.name, keys.access_key_id[-4:], utc(expiration), remark))
        self._credentials = Credentials(keys, now, expiration)
        self._refresh_at = expiration - refresh_window(expiration - now)
        self._failures = self._retry_at = 0
        self.error = ""

    def _reject(self, error, now):
        wait = min(MAX_BACK_OFF, 2 ** min(self._failures, 10))
        self._failures += 1
        self._retry_at = self._monotonic() + wait
        kept = "none are served"
        if self._credentials and now < self._credentials.expiration:
            kept = "the old ones are valid until " + utc(self._credentials.expiration)
        words = "no new credentials for %s: %s; %s, retrying in %d s" % (
            self.name, error, kept, wait)
        self._say(words)
        if self._complain and not self.error:
            self._complain(words)
        self.error = str(error)


def refresh_window(validity: float) -> float:
    """Compute how many seconds ahead of expiry to refresh credentials.

    A quarter of their validity, five minutes at least, half of it at most. With six hours that
    is 90 minutes: more than the 15 in which botocore keeps asking for newer ones.
    """
    return min(validity / 2, max(REFRESH_AHEAD, validity / 4))


def make_credentials(
    config: dict,
    say: Callable[[str], None],
    call_soon_threadsafe: Optional[Callable[[Callable], None]],
    former: Optional[Dict[str, RefreshableCredentials]] = None,
    randomness: Randomness = os.urandom,
    complain: Optional[Callable[[str], None]] = None,
) -> Dict[str, RefreshableCredentials]:
    """Make {role: RefreshableCredentials} from a configuration; nothing is fetched yet.

    Those in `former`, the result of an earlier call, are kept if their settings are the same.
    """
    credentials = {}
    for role, settings in role_settings(config).items():
        kept = former.get(role) if former else None
        if kept and kept.settings == settings:
            credentials[role] = kept
            continue
        source = SOURCES[settings["source"]]
        fetch = functools.partial(source.fetch, settings, randomness)
        hand_over = call_soon_threadsafe if source.blocks else None
        credentials[role] = RefreshableCredentials(
            role, settings, fetch, say, hand_over, source.files(settings), complain=complain)
    return credentials


ROLE_NAME = re.compile(r"[\w+=,.@-]{1,64}", re.ASCII)


def role_settings(config: dict) -> Dict[str, dict]:
    """Map each role, in each account, to the settings of its credentials, account-id among them.

    Raises ConfigError.
    """
    usual = config["instance"]["account-id"]
    return {name_in_account(role, account, usual): {
        **{key: settings[key] for key in SOURCE_SETTINGS}, "account-id": account}
        for account in accounts_of(config) for role, settings in roles_of(config).items()}


def roles_of(config: dict) -> Dict[str, dict]:
    """Map each role to its section of the configuration. Raises ConfigError."""
    roles = {IDENTITY_ROLE: default_settings("role NAME")}
    if config["credentials"]["role"]:
        roles[config["credentials"]["role"]] = config["credentials"]
    for section, settings in config.items():
        kind, _, name = section.partition(" ")
        if kind != "role":
            continue
        name = name.strip()
        if name in roles:
            raise ConfigError("a role of this name is already configured", section)
        if not ROLE_NAME.fullmatch(name):
            raise ConfigError(
                "not a role name; use up to 64 letters, digits and _+=,.@-", section)
        roles[name] = settings
    return roles


def accounts_of(config: dict) -> List[str]:
    """List the accounts of all instances: first that of [instance]."""
    accounts = [config["instance"]["account-id"]]
    for section in config:
        if section.startswith("instance ") and "account-id" in config.texts.get(section, ()):
            accounts.append(config[section]["account-id"])
    return list(dict.fromkeys(accounts))


def name_in_account(role: str, account: str, usual: str) -> str:
    """Name the credentials of a role, and the account unless it is the usual one."""
    return role if account == usual else "%s in %s" % (role, account)


# ---------------------------------------------------------------- signatures ------------------
#
# The identity document is signed as on EC2, by RSA with SHA-256; AWS's certificates verify its
# signatures there, and a certificate of our own does here. An identity is a key with its
# certificate.

class Signatures(NamedTuple):
    """The signatures of one document, in the form in which they are served."""

    signature: str
    pkcs7: str


class Signer:
    """Signs the identity document, in a thread of its own, since a new key takes seconds.

    `identity` is that of the configuration, or None: then `make_identity(cancelled)` makes one, in
    the thread, when it is first needed, unless the Event `cancelled` is set meanwhile. `sign`,
    `start` and `close` are to be called in the thread of the server; `call_soon_threadsafe` hands
    what was made over to it. `say` writes to the log.
    """

    def __init__(self, identity, make_identity, say, call_soon_threadsafe, clock=time.monotonic):
        self.identity = identity
        self.pending = False  # the thread is at work
        self._current = identity
        self._make_identity = make_identity
        self._say = say
        self._call_soon_threadsafe = call_soon_threadsafe
        self._clock = clock
        self._cancelled = threading.Event()
        self._thread = None
        self._retry_at = 0  # after a failure
        self._signed = None  # the last document
        self._signatures = None

    def sign(self, document: bytes) -> Optional[Signatures]:
        """Return the signatures of a document; None while they are made."""
        if document == self._signed:
            return self._signatures
        self.start(document)
        return None

    def start(self, document: bytes = b"") -> None:
        """Begin to sign a document, unless the thread is at work, or has failed just now.

        Without a document it only makes the identity.
        """
        if self.pending or self._clock() < self._retry_at:
            return
        self.pending = True
        self._thread = threading.Thread(
            target=self._sign_in_thread, args=(document,), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads
            self._take(document, None, str(error))

    def close(self) -> None:
        """End what is under way."""
        self._cancelled.set()
        if self.pending and self._thread:
            self._thread.join(1)

    def _sign_in_thread(self, document):
        signatures, trouble = None, ""
        try:
            if not self._current:
                self._current = self._make_identity(self._cancelled)
            signatures = signatures_of(document, *self._current)
        except Exception as error:
            trouble = place_of(error)
        self._call_soon_threadsafe(
            functools.partial(self._take, document, signatures, trouble))

    def _take(self, document, signatures, trouble):
        self.pending = False
        if trouble:
            self._retry_at = self._clock() + 1
            self._say("cannot sign the identity document: " + trouble)
        else:
            self._signed, self._signatures = document, signatures


def signatures_of(document: bytes, key: RSAKey, certificate: bytes) -> Signatures:
    """Sign a document."""
    signature = key.sign(document)
    return Signatures(
        base64_lines(signature), base64_lines(signed_data(document, signature, certificate)))


def identity_path(environ: Dict[str, str]) -> str:
    """Return the path at which the identity is kept; "" if it is in memory."""
    directory = environ.get("STATE_DIRECTORY")
    return os.path.join(directory, IDENTITY_FILE) if directory else ""


def identity_by_child(path: str, cancelled: threading.Event) -> Tuple[RSAKey, bytes]:
    """Read an identity from a file, or have a child process make it; without a path, for us alone.

    A thread would hold up everybody else: long arithmetic keeps Python's global lock. Raises
    OSError if it is cancelled.
    """
    with contextlib.ExitStack() as stack:
        if not path:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="fake-metadata-"))
            path = os.path.join(directory, IDENTITY_FILE)
        if not os.path.exists(path):
            run_maker(path, cancelled)
        return kept_identity(path)


def run_maker(path: str, cancelled: threading.Event) -> None:
    """Run this program for an identity in a file. Raises OSError if it is cancelled."""
    # Its failures are not for the supervisor.
    environ = dict(os.environ, STATE_DIRECTORY=os.path.dirname(path), NOTIFY_SOCKET="")
    child = subprocess.Popen(
        [sys.executable, "-I", "-B", __file__, "--certificate"], env=environ,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None:
        if cancelled.wait(COMMAND_POLL):
            child.kill()
            child.wait()
            raise OSError(errno.ECANCELED, "the key is no longer wanted")


def made_identity() -> Tuple[RSAKey, bytes]:
    """Make a key and its certificate."""
    key = make_rsa_key(SIGNING_KEY_BITS)
    return key, make_certificate(key)


def kept_identity(path: str) -> Tuple[RSAKey, bytes]:
    """Read an identity from a file; make it, and the file, if there is none.

    The file has two PEM blocks, RSA PRIVATE KEY and CERTIFICATE.
    """
    with locked(os.path.dirname(path)):
        identity = read_identity(path)
        if not identity:
            identity = key, certificate = made_identity()
            keep(path, key.in_pem() + pem("CERTIFICATE", certificate))
        return identity


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Wait until no other process has a directory locked; lock it in the block.

    Otherwise two services, or a service and --certificate, could each make a key and keep one.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, file)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # nothing can be kept there, or locked
            pass
        yield


def read_identity(path: str) -> Optional[Tuple[RSAKey, bytes]]:
    """Read an identity from a file of kept_identity; None if it is missing or damaged."""
    try:
        text = read_file(path, MAX_SOURCE_BYTES).decode("ascii")
        return read_rsa_key(text), read_pem(text, "CERTIFICATE")[1]
    except (OSError, ValueError):
        return None


def configured_identity(settings: dict) -> Optional[Tuple[RSAKey, bytes]]:
    """Read the key and the certificate that [instance-identity] names. Raises ConfigError."""
    if not settings["key"]:
        if settings["certificate"]:
            raise ConfigError("needs its private key; write key = /etc/fake-metadata.key",
                              "instance-identity", "certificate")
        return None
    key = read_pem_file("key", settings["key"], read_rsa_key,
                        "an RSA private key of 1024 to %d bits without a passphrase" % MAX_KEY_BITS)
    if not settings["certificate"]:
        return key, make_certificate(key)
    certificate = read_pem_file("certificate", settings["certificate"], read_certificate,
                                "a certificate")
    if key.public_part() not in certificate:
        raise ConfigError("does not belong to the private key", "instance-identity", "certificate")
    return key, certificate


def read_pem_file(name: str, path: str, read: Callable[[str], Any], wanted: str) -> Any:
    """Read a file that a key of [instance-identity] names. Raises ConfigError."""
    try:
        return read(read_file(path, MAX_SOURCE_BYTES).decode("ascii"))
    except OSError as error:
        trouble = error.strerror
    except ValueError:
        trouble = "not %s in PEM form" % wanted
    raise ConfigError("%s: %s" % (path, trouble), "instance-identity", name)


def read_certificate(text: str) -> bytes:
    """Read a certificate from a PEM file. Raises ValueError."""
    certificate = read_pem(text, "CERTIFICATE")[1]
    issuer_and_serial(certificate)
    return certificate


# RSA keys (RFC 8017), and their encoding, DER (X.690).

class RSAKey(NamedTuple):
    """A private key: the numbers of RFC 8017, appendix A.1.2, in their order."""

    modulus: int
    public_exponent: int
    private_exponent: int
    prime1: int
    prime2: int
    exponent1: int
    exponent2: int
    coefficient: int

    def sign(self, data: bytes) -> bytes:
        """Sign data (RSASSA-PKCS1-v1_5 with SHA-256; RFC 8017, section 8.2.1)."""
        message = self._padded(data)
        # By the Chinese remainder theorem, which takes a quarter of the time.
        first = pow(message, self.exponent1, self.prime1)
        second = pow(message, self.exponent2, self.prime2)
        step = (first - second) * self.coefficient % self.prime1
        return (second + step * self.prime2).to_bytes(self._size(), "big")

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Tell whether data has a signature of this key."""
        number = int.from_bytes(signature, "big")
        return pow(number, self.public_exponent, self.modulus) == self._padded(data)

    def _size(self):
        return (self.modulus.bit_length() + 7) // 8

    def _padded(self, data):
        """Hash data and pad the hash to the size of the modulus (RFC 8017, section 9.2)."""
        info = der(SEQUENCE, SHA256, der(OCTET_STRING, hashlib.sha256(data).digest()))
        padding = b"\xff" * (self._size() - len(info) - 3)
        return int.from_bytes(b"\0\1" + padding + b"\0" + info, "big")

    def in_pem(self) -> str:
        """Write the key as a PEM block."""
        return pem("RSA PRIVATE KEY", der(SEQUENCE, *map(der_integer, (0, *self))))

    def public_part(self) -> bytes:
        """Encode the public key as certificates have it (RFC 8017, appendix A.1.1)."""
        return der(SEQUENCE, der_integer(self.modulus), der_integer(self.public_exponent))


def make_rsa_key(bits: int, randomness: Randomness = os.urandom) -> RSAKey:
    """Make a key; with 2048 bits that takes up to some seconds."""
    p, q = make_prime(bits // 2, randomness), make_prime(bits // 2, randomness)
    order = (p - 1) * (q - 1)
    # The inverse of the public exponent modulo the order; pow() finds one since Python 3.8 only,
    # but since the exponent is prime, Fermat's theorem gives that of the order modulo it.
    multiple = pow(-order, PUBLIC_EXPONENT - 2, PUBLIC_EXPONENT)
    private = (order * multiple + 1) // PUBLIC_EXPONENT
    return RSAKey(p * q, PUBLIC_EXPONENT, private, p, q, private % (p - 1), private % (q - 1),
                  pow(q, p - 2, p))


def make_prime(bits: int, randomness: Randomness) -> int:
    """Make a prime number whose two highest bits are set, for the exponent of our keys.

    Of random numbers of this size hardly one in 10**40 passes Fermat's test and is no prime.
    """
    small_factors = math.factorial(2000)
    while True:
        number = int.from_bytes(randomness(bits // 8), "big") | 3 << (bits - 2) | 1
        if math.gcd(number, small_factors) > 1 or number % PUBLIC_EXPONENT == 1:
            continue
        if all(pow(base, number - 1, number) == 1 for base in (2, 3, 5)):
            return number


INTEGER, BIT_STRING, OCTET_STRING, NULL = 0x02, 0x03, 0x04, 0x05
PRINTABLE_STRING, UTC_TIME, SEQUENCE, SET, CONTEXT_0 = 0x13, 0x17, 0x30, 0x31, 0xa0


def der(tag: int, *parts: bytes) -> bytes:
    """Encode a value, given as the parts of its content."""
    content = b"".join(parts)
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 128 + len(octets)]) + octets + content


def der_integer(number: int) -> bytes:
    """Encode a whole number that is not negative."""
    return der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def der_values(data: bytes) -> List[Tuple[int, bytes]]:
    """Take apart values that follow each other, one at least: (tag, content). Raises ValueError."""
    values = []
    while data or not values:
        head, length = 2, data[1:2]
        if length >= b"\x80":
            head += length[0] - 128
            length = data[2:head]
        end = head + int.from_bytes(length, "big")
        if not length or end > len(data):
            raise ValueError("not in DER")
        values.append((data[0], data[head:end]))
        data = data[end:]
    return values


DATA = bytes.fromhex("06092a864886f70d010701")  # 1.2.840.113549.1.7.1, of PKCS#7
SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")  # 1.2.840.113549.1.7.2
SHA256 = der(SEQUENCE, bytes.fromhex("0609608648016503040201"), der(NULL))
RSA = der(SEQUENCE, bytes.fromhex("06092a864886f70d010101"), der(NULL))
RSA_SHA256 = der(SEQUENCE, bytes.fromhex("06092a864886f70d01010b"), der(NULL))
COMMON_NAME = bytes.fromhex("0603550403")  # 2.5.4.3


def make_certificate(key: RSAKey) -> bytes:
    """Make a certificate of a key, signed by itself; always the same one (RFC 5280)."""
    common_name = der(SEQUENCE, COMMON_NAME, der(PRINTABLE_STRING, b"fake-metadata"))
    name = der(SEQUENCE, der(SET, common_name))
    public_part = key.public_part()
    serial = int.from_bytes(hashlib.sha256(public_part).digest()[:8], "big")
    # Wide enough for any clock that a test sets.
    validity = der(SEQUENCE, der(UTC_TIME, b"120101000000Z"), der(UTC_TIME, b"491231235959Z"))
    content = der(
        SEQUENCE, der_integer(serial), RSA_SHA256, name, validity, name,
        der(SEQUENCE, RSA, der(BIT_STRING, b"\0", public_part)))
    return der(SEQUENCE, content, RSA_SHA256, der(BIT_STRING, b"\0", key.sign(content)))


def issuer_and_serial(certificate: bytes) -> bytes:
    """Extract issuer and serial number, which name a certificate in a signature.

    Raises ValueError.
    """
    to_be_signed = der_values(der_values(der_values(certificate)[0][1])[0][1])
    if to_be_signed[0][0] == CONTEXT_0:  # the version, which our own certificates do not have
        del to_be_signed[0]
    (_, serial), _, (_, issuer) = to_be_signed[:3]
    return der(SEQUENCE, der(SEQUENCE, issuer), der(INTEGER, serial))


def signed_data(document: bytes, signature: bytes, certificate: bytes) -> bytes:
    """Wrap a document and its signature in PKCS#7 (RFC 2315), without the certificate as on EC2."""
    signer = der(
        SEQUENCE, der_integer(1), issuer_and_serial(certificate), SHA256, RSA,
        der(OCTET_STRING, signature))
    return der(SEQUENCE, SIGNED_DATA, der(CONTEXT_0, der(
        SEQUENCE, der_integer(1), der(SET, SHA256),
        der(SEQUENCE, DATA, der(CONTEXT_0, der(OCTET_STRING, document))),
        der(SET, signer))))


def base64_lines(data: bytes, width: int = 76) -> str:
    """Encode bytes in lines as the signatures of the real service have them (capture)."""
    return "\n".join(textwrap.wrap(base64.b64encode(data).decode(), width))


def pem(kind: str, data: bytes) -> str:
    """Write bytes as a block of a PEM file (RFC 7468)."""
    return "-----BEGIN %s-----\n%s\n-----END %s-----\n" % (kind, base64_lines(data, 64), kind)


PEM_BLOCK = re.compile("-----BEGIN ([A-Z0-9 ]+)-----([^-]*)-----END \\1-----")


def read_pem(text: str, *kinds: str) -> Tuple[str, bytes]:
    """Find the first block of some kinds in a PEM file. Raises ValueError."""
    for kind, data in PEM_BLOCK.findall(text):
        if kind in kinds:
            return kind, base64.b64decode("".join(data.split()), validate=True)
    raise ValueError("no such block")


def read_rsa_key(text: str) -> RSAKey:
    """Read a key from a PEM file, as openssl writes it. Raises ValueError."""
    kind, data = read_pem(text, "PRIVATE KEY", "RSA PRIVATE KEY")
    _, content = der_values(data)[0]
    if kind == "PRIVATE KEY":  # PKCS#8 (RFC 5208): version, algorithm, and the same as PKCS#1
        _, (_, algorithm), (_, inner) = der_values(content)[:3]
        if algorithm != RSA[2:]:
            raise ValueError("not for RSA")
        _, content = der_values(inner)[0]
    numbers = [int.from_bytes(number, "big") for _, number in der_values(content)]
    if len(numbers) != 9:
        raise ValueError("no key")
    key = RSAKey(*numbers[1:])  # after the version
    if not 1024 <= key.modulus.bit_length() <= MAX_KEY_BITS:
        raise ValueError("too short, or too long")
    if key.prime1 * key.prime2 != key.modulus or not key.verifies(key.sign(b""), b""):
        raise ValueError("damaged")
    return key


# ---------------------------------------------------------------- session tokens --------------

class SessionTokens:
    """Session tokens of IMDSv2, stateless: an expiry on the monotonic clock, and a seal over it.

    However many are issued, they take no memory. On a box the key stays the same until the next
    boot, so they survive a restart of the service: of 24 clients tried, 14 fail once if the token
    that they hold is forgotten. Like real ones they have 56 characters, from AQAE to == (capture).

        prefix 3 bytes | expiry 5 bytes, milliseconds | random 7 bytes | BLAKE2b 25 bytes
    """

    def __init__(self, key, clock=time.monotonic, randomness=os.urandom):
        self._key = key
        self._clock = clock
        self._randomness = randomness
        # Clients send the same token repeatedly; this saves a sixth of a request's time.
        self._expiry = functools.lru_cache(maxsize=256)(self._read_expiry)

    def issue(self, ttl: int) -> str:
        """Issue a token that lives for `ttl` seconds; with 0 it expires at once (capture)."""
        expiry = int((self._clock() + ttl) * 1000)
        payload = TOKEN_PREFIX + expiry.to_bytes(5, "big") + self._randomness(7)
        text = base64.urlsafe_b64encode(payload)
        return (text + self._seal(text)).decode()

    def remaining(self, token: str) -> Optional[float]:
        """Return the seconds that a token has left; None if it has expired or is not ours."""
        if len(token) != TOKEN_LENGTH:
            return None
        left = self._expiry(token) - self._clock()
        return left if 0 < left <= MAX_TOKEN_TTL else None

    def _read_expiry(self, token):
        text = token.encode("latin-1", "replace")
        if not hmac.compare_digest(text[20:], self._seal(text[:20])):
            return 0
        payload = base64.urlsafe_b64decode(text[:20])
        return int.from_bytes(payload[3:8], "big") / 1000

    def _seal(self, text):
        seal = hashlib.blake2b(text, key=self._key, digest_size=25)
        return base64.urlsafe_b64encode(seal.digest())


def session_token_key(directory: Optional[str] = None) -> bytes:
    """Return a random key: that of this boot in a runtime directory, else a new one.

    The file `token-key` in the directory has it as a line of 64 hexadecimal digits.
    """
    path = os.path.join(directory, "token-key") if directory else ""
    key = read_line(path) if path else ""
    if not re.fullmatch("[0-9a-f]{64}", key):
        key = os.urandom(32).hex()
        if path:
            keep(path, key + "\n")
    return bytes.fromhex(key)


# ---------------------------------------------------------------- the service -----------------

class MetadataService:
    """The metadata service that a configuration describes: options, instances and faults.

    A reload makes a new one, which replaces the old one as a whole; events and faults of `former`
    go on where their texts are the same. `credentials` is {role: RefreshableCredentials}; `signer`
    signs the identity document; `hosts` are further names that a Host header may have; `box`
    identifies this machine. Raises ConfigError.
    """

    def __init__(self, config, credentials, signer, box, hosts=(), former=None, clock=time.time):
        options = config["metadata-options"]
        self.enabled = options["http-endpoint"] == "enabled"
        self.token_required = options["http-tokens"] == "required"
        self.hop_limit = options["http-put-response-hop-limit"]
        self.serves_ipv6 = serves_ipv6(config)
        self.error_bodies = config["server"]["error-bodies"]
        self.logs_clients = config["server"]["log-clients"] == "yes"
        self.hosts = allowed_hosts(OWN_HOSTS, hosts, config["server"]["allowed-hosts"])
        self.clock = clock
        self._config = config
        self._credentials = credentials
        self._signer = signer
        self._box = box
        self._started = clock()
        self._authorizations = authorizations(config)
        self._role_paths = paths_of_roles(config)
        self.role_rules = role_rules(config)
        self.instance_rules = instance_rules(config)
        self.events = events_of(config, former.events if former else (), self._started)
        self.faults = kept_or_made(
            Fault, config["faults"], config.texts.get("faults", {}),
            former.faults if former else (), self._started)
        check_instance_names(config, self.instance_rules, self.faults)
        self._is_one_for_all = not (self.instance_rules or self.role_rules)
        self._known_of = functools.lru_cache(MAX_INSTANCES)(self._look_up)
        self._tree_of = functools.lru_cache(MAX_INSTANCES)(self._make_tree)
        self._usual = self._make_tree("", "", config["credentials"]["role"])
        self._examples = [
            self._make_tree(rule.name, rule.example(), config["credentials"]["role"])
            for rule in self.instance_rules]

    def seen_by(self, peer: str, user: Callable[[], Optional[str]]) -> InstanceTree:
        """Return the instance that a client sees, with the role that it gets.

        `peer` is its address; `user` returns its Unix user, or None if it is unknown, and is only
        called where a role depends on it.
        """
        if self._is_one_for_all:
            return self._usual
        tree, by_user = self._known_of(peer)
        for rule in by_user:
            if user() in rule.users:
                return self._tree_of(tree.name, tree.address, rule.role)
        return tree

    def forget(self) -> None:
        """Forget the instances made so far: those that are used are made again as they were."""
        self._known_of.cache_clear()
        self._tree_of.cache_clear()

    def is_for_containers(self, path: str) -> bool:
        """Tell whether a path is that of a container endpoint."""
        if path.startswith("/latest/"):
            return False
        if CONTAINER_PATH.fullmatch(path):
            return True
        _, make_document = self._role_paths.get(path, (None, None))
        return make_document is task_credentials

    def find(self, path: str) -> Optional[ServedDocument]:
        """Return the document at a path now, for clients in general; None if there is none."""
        return self._usual.find(path)

    def find_for_container(
        self, path: str, query: str, authorization: str, tree: Optional[InstanceTree] = None
    ) -> Optional[RotatingDocument]:
        """Return the credentials of the role that path, id or Authorization name."""
        tree = tree or self._usual
        if path != POD_PATH:
            return tree.find(path)
        role = credentials_id(query)
        if role is not None:
            return tree.find("/v2/credentials/" + role)
        for role, wanted in self._authorizations.items():
            if role in tree.pods and wanted.admits(authorization):
                return tree.pods[role]
        return tree.find(path)

    def authorization_of(self, found: Optional[RotatingDocument]) -> Optional[Authorization]:
        """Return the Authorization that credentials, or an unknown role, need; None if none."""
        role = found.credentials.role if found else ""
        return self._authorizations.get(role) or self._authorizations.get("")

    def paths(self) -> List[str]:
        """List all paths of [instance] but those of derived directories."""
        return self._usual.paths()

    def instance_names(self) -> List[str]:
        """List "", which stands for [instance], and the NAME of each [instance NAME]."""
        return ["", *(rule.name for rule in self.instance_rules)]

    def every_path(self, instance: str = "") -> Dict[str, Optional[ServedDocument]]:
        """Map each path that an instance has, now or after all events, to its document.

        A path that only another configuration fills, and that of session tokens, has None.
        """
        fixed = [path for path in ROUTES if "{" not in path]
        paths = dict.fromkeys([TOKEN_PATH, *fixed, *directories_of(fixed)])
        tree = next(tree for tree in [self._usual, *self._examples] if tree.name == instance)
        return {**paths, **tree.every_path()}

    def news(self) -> List[str]:
        """Say which events have begun or changed since the last call, for the log."""
        now = self.clock()
        changes = [(change.begins, "event %s: %s" % (event.full_name, change.words))
                   for event in self.events for change in event.news(now)]
        return [words for _, words in sorted(changes, key=operator.itemgetter(0))]

    def fault_actions(
        self, path: str, has_token: bool, tree: Optional[InstanceTree] = None
    ) -> Dict[str, Strike]:
        """Merge the actions of the faults that match a request."""
        tree = tree or self._usual
        now, found = self.clock(), tree.find(path)
        return merged_actions([
            fault for fault in self.faults
            if fault.matches(path, now, has_token, found, tree.name)])

    def under_way(self) -> Dict[str, List[str]]:
        """Name the events that have begun and the faults that strike."""
        now = self.clock()
        events = [event.full_name for event in self.events if event.has_begun(now)]
        faults = [fault.name for fault in self.faults if fault.is_on(now)]
        return {"events": events, "faults": faults}

    def clients_in_words(self) -> List[str]:
        """Describe the clients that see an instance, or get a role, of their own."""
        return [rule.in_words() for rule in (*self.instance_rules, *self.role_rules)]

    def _look_up(self, peer):
        """Find the tree of the client at an address, and the rules that depend on its user."""
        address = ipaddress.ip_address(peer.partition("%")[0])
        instance = next((rule for rule in self.instance_rules if rule.has(address)), None)
        role, by_user = self._config["credentials"]["role"], []
        for rule in self.role_rules:
            if rule.has(address):
                if not rule.users:
                    role = rule.role
                    break
                by_user.append(rule)
        if not instance:
            return self._tree_of("", "", role), by_user
        return self._tree_of(instance.name, peer if instance.each else "", role), by_user

    def _make_tree(self, name, address, role):
        """Make the tree of an instance, or of [instance] without a name, with a role."""
        config, box = config_with_role(self._config, role), self._box
        if name:
            rule = next(rule for rule in self.instance_rules if rule.name == name)
            box = "\0".join((self._box, rule.section, address))
            own = own_settings(self._config, name)
            config = config_of_instance(config, rule, own, address, self._usual.facts)
        try:
            facts = describe_instance(without_foreign_interfaces(config, name), box, self._started)
            self._add_what_is_no_fact(facts, config, role)
            return InstanceTree(
                name, address, facts, events_seen(self.events, name), self.clock)
        except ConfigError as error:
            error.section = section_for(name, error.section, error.key, self._config.texts)
            raise

    def _add_what_is_no_fact(self, facts, config, role):
        """Put beside the facts of an instance what is served with them."""
        hidden = {rule.role for rule in self.role_rules} - {role}
        account, usual = facts.account_id, self._config["instance"]["account-id"]
        facts.own = {own_path(key): text for key, text in config["metadata"].items()}
        facts.credentials = {
            one: self._credentials[name_in_account(one, account, usual)]
            for one in roles_of(self._config)}
        facts.signer = self._signer
        facts.user_data = read_user_data(config["user-data"])
        facts.served_role = facts.role
        facts.served_roles = [Instance(served_role=one) for one in facts.credentials
                              if one != IDENTITY_ROLE and one not in hidden]
        facts.role_paths = {path: made for path, made in self._role_paths.items()
                            if made[0] not in hidden}


class InstanceTree:
    """An instance as it is served: its facts, its events, and the tree at a moment.

    `name` is the NAME of [instance NAME]; `address` is set if only that address sees it.
    """

    def __init__(
        self, name: str, address: str, facts: Instance, events: List[Event],
        clock: Callable[[], float],
    ):
        self.name = name
        self.address = address
        self.facts = facts
        self.pods = {member.served_role: pod_credentials(member)
                     for member in members_of(facts, "served_roles")}
        self._events = events
        self._clock = clock
        self._started = clock()
        self._check_tree_after_all_events()
        self._build(self._started)

    def find(self, path: str) -> Optional[ServedDocument]:
        """Return the document at a path now; None if there is none."""
        now = self._clock()
        if not self._built <= now < self._stale:
            self._build(now)
        return self._tree.get(path)

    def paths(self) -> List[str]:
        """List all paths but those of derived directories."""
        return sorted(path for path, document in self._tree.items()
                      if not isinstance(document, Listing))

    def every_path(self) -> Dict[str, ServedDocument]:
        """Map each path that is there, now or after all events, to its document."""
        facts, _ = event_facts(self._events, FOREVER)
        return {**self._make_tree(facts, self._started), **self._tree}

    def failure_message(self, code: str, found: ServedDocument, fault: str) -> str:
        """Return the message that the real service has for a code, in place of a document.

        For any other code it names the fault.
        """
        if code not in FAILURE_MESSAGES:
            return FAULT_MESSAGE % fault
        role = self.facts.role
        if isinstance(found, RotatingDocument):
            role = found.credentials.role
        return FAILURE_MESSAGES[code].format(
            role=role, instance_profile_id=self.facts.instance_profile_id)

    def _check_tree_after_all_events(self):
        """Refuse at once a key of [metadata] that would collide only with a later event."""
        if self._events:
            facts, _ = event_facts(self._events, FOREVER)
            self._make_tree(facts, self._started)

    def _build(self, now):
        """Build the current tree; for an hour at most, so that iam/info's LastUpdated moves."""
        facts, change = event_facts(self._events, now)
        self._tree = self._make_tree(facts, now)
        self._built, self._stale = now, min(change, now + 3600)

    def _make_tree(self, events, now):
        return build_tree(Instance(**vars(self.facts), **events, now=now))


class InstanceRule(NamedTuple):
    """[instance NAME]: another instance for some clients; with `each`, one for each address."""

    name: str
    networks: Tuple[Any, ...]
    each: bool

    @property
    def section(self) -> str:
        """Return the section of the configuration that the rule is from."""
        return "instance " + self.name

    def has(self, address: Any) -> bool:
        """Tell whether the client at an address sees the instance."""
        return any(address in network for network in self.networks)

    def example(self) -> str:
        """Return an address that sees the instance."""
        return str(self.networks[0][0])

    def in_words(self) -> str:
        """Say who sees the instance."""
        clients = "each client" if self.each else "clients"
        return "instance %s: for %s from %s" % (
            self.name, clients, ", ".join(map(str, self.networks)))


class RoleRule(NamedTuple):
    """[role NAME] with users or from: some clients have it as the role of the instance."""

    role: str
    users: Tuple[str, ...]
    networks: Tuple[Any, ...]

    def has(self, address: Any) -> bool:
        """Tell whether the client at an address may get the role, if its user may."""
        return not self.networks or any(address in network for network in self.networks)

    def in_words(self) -> str:
        """Say who gets the role."""
        words = "users " + ", ".join(self.users) if self.users else "clients"
        if self.networks:
            words += " from " + ", ".join(map(str, self.networks))
        return "role %s: for %s" % (self.role, words)


def instance_rules(config: dict) -> List[InstanceRule]:
    """List the rules of [instance NAME], in the order of the file. Raises ConfigError."""
    rules = []
    for section, settings in config.items():
        kind, _, name = section.partition(" ")
        if kind != "instance" or not name:
            continue
        if not settings["from"]:
            raise ConfigError(
                "missing; say which clients see this instance: from = 172.18.0.0/16, 10.0.3.7",
                section, "from")
        rules.append(InstanceRule(
            name.strip(), tuple(settings["from"]), settings["each"] == "yes"))
    return rules


def role_rules(config: dict) -> List[RoleRule]:
    """List the rules of [role NAME] with users or from, in the order of the file."""
    return [RoleRule(section.partition(" ")[2].strip(), tuple(settings["users"]),
                     tuple(settings["from"]))
            for section, settings in config.items()
            if section.startswith("role ") and (settings["users"] or settings["from"])]


def events_of(config: dict, former: Iterable[Event], start: float) -> List[Event]:
    """Make the events of [events] and of each [events NAME], or keep the former ones."""
    events = []
    for section, settings in config.items():
        kind, _, name = section.partition(" ")
        if kind == "events":
            name = name.strip()
            events += kept_or_made(
                functools.partial(Event, instance=name), settings, config.texts.get(section, {}),
                [event for event in former if event.instance == name], start)
    return events


def events_seen(events: List[Event], instance: str) -> List[Event]:
    """List the events of an instance: its own, and those for all that it does not replace."""
    own = [event for event in events if event.instance == instance]
    names = {event.name for event in own}
    return own + [event for event in events
                  if instance and not event.instance and event.name not in names]


# Kinds of sections that may be for one instance: [events web] is for [instance web].
SECTIONS_OF_INSTANCES = ("events", "tags", "metadata", "user-data")


def check_instance_names(
    config: dict, rules: List[InstanceRule], faults: List[Fault]
) -> None:
    """Refuse settings of an instance that does not exist. Raises ConfigError."""
    names = {rule.name for rule in rules}
    wanted = []
    for section, settings in config.items():
        kind, _, name = section.partition(" ")
        if kind in SECTIONS_OF_INSTANCES and name:
            wanted.append((name.strip(), section, ""))
        elif kind == "interface" and settings["instance"]:
            wanted.append((settings["instance"], section, "instance"))
    wanted += [(fault.instance, "faults", fault.name) for fault in faults if fault.instance]
    for name, section, key in wanted:
        if name not in names:
            raise ConfigError("there is no [instance %s]" % printable(name), section, key)


def section_for(name: str, section: str, key: str, texts: Dict[str, Dict[str, str]]) -> str:
    """Return the section in which an instance has a key: [metadata web] rather than [metadata]."""
    own = "%s %s" % (section, name)
    is_there = key in texts.get(own, ()) or own in texts and key not in texts.get(section, ())
    return own if name and is_there else section


def config_with_role(config: dict, role: str) -> dict:
    """Return a configuration in which the instance has another role, with a profile of its own."""
    if role == config["credentials"]["role"]:
        return config
    profile = {"instance-profile": "", "instance-profile-id": ""}
    return {**config, "credentials": {**config["credentials"], "role": role},
            "instance": {**config["instance"], **profile}}


# Keys of [instance] that another instance never shares, and those that it shares in one network.
IDENTITY_KEYS = (
    "instance-id", "reservation-id", "mac", "interface-id", "local-ipv4", "local-hostname",
    "public-hostname", "ipv6", "ipv4-prefix", "ipv6-prefix")
NETWORK_KEYS = (
    "vpc-id", "vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks", "subnet-id",
    "subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks")


def config_of_instance(
    config: dict, rule: InstanceRule, own: Dict[str, dict], address: str, usual: Instance
) -> dict:
    """Return a configuration whose [instance] is that of a rule, as seen from an address.

    `own` has the settings for it alone, {"instance": {key: value}, "tags": ...}. All others are as
    for all, except identities. `usual` has the facts of [instance].
    """
    identities = {key: value for key, value in default_settings("instance").items()
                  if key in IDENTITY_KEYS}
    settings = {**config["instance"], **identities, **addresses_of(rule, address)}
    if config["instance"]["public-ipv4"] == []:
        settings["public-ipv4"] = []
    settings.update(own["instance"])
    settings.update(network_of(settings, usual))
    settings.update(own["instance"])
    return {**config, "instance": settings,
            "user-data": own["user-data"] or config["user-data"],
            **{kind: {**config[kind], **own[kind]} for kind in ("events", "tags", "metadata")}}


def own_settings(config: Configuration, name: str) -> Dict[str, dict]:
    """Return the settings for [instance NAME] alone, from its section of each kind."""
    own = {}
    for kind in ("instance", *SECTIONS_OF_INSTANCES):
        section = "%s %s" % (kind, name)
        written = config.texts.get(section, {})
        own[kind] = {key: config[section][key] for key in written if key not in ("from", "each")}
    if own["user-data"]:
        own["user-data"] = config["user-data " + name]
    return own


def addresses_of(rule: InstanceRule, address: str) -> dict:
    """Return the addresses of an instance: the one that sees it, and a public one.

    An instance that several addresses see has an address of their block. Public ones are of
    198.18.0.0/15 (RFC 2544), so that no two of a block are the same.
    """
    network = rule.networks[0]
    if not address and network.num_addresses == 1:
        address = str(network[0])
    if ":" in (address or str(network)):
        return {"ipv6": [address]} if address else {}
    address = address or first_of(free_address(str(network), [], rule.section))
    public = ipaddress.ip_address("198.18.0.0") + int(ipaddress.ip_address(address)) % (1 << 17)
    return {"local-ipv4": [address], "public-ipv4": [str(public)]}


def network_of(settings: dict, usual: Instance) -> dict:
    """Return the VPC of an instance, and its subnet: those of [instance] where they fit."""
    address = first_of(settings["local-ipv4"] or [])
    region = ZONE.fullmatch(settings["availability-zone"])["region"]
    if not address:
        return {}
    is_in_vpc = (
        any(is_in(address, block) for block in usual.vpc_ipv4_cidr_blocks or ())
        and (region, settings["account-id"]) == (usual.region, usual.account_id))
    network = dict.fromkeys(NETWORK_KEYS)
    if not is_in_vpc:
        block = str(ipaddress.ip_network(address + "/16", strict=False))
        network["vpc-id"] = made_id("vpc-", settings["account-id"], region, block)
        return network
    network.update({"vpc-id": usual.vpc_id, "vpc-ipv4-cidr-blocks": usual.vpc_ipv4_cidr_blocks,
                    "vpc-ipv6-cidr-blocks": usual.vpc_ipv6_cidr_blocks})
    if (settings["availability-zone"] == usual.availability_zone
            and usual.subnet_ipv4_cidr_block and is_in(address, usual.subnet_ipv4_cidr_block)):
        network.update({"subnet-id": usual.subnet_id,
                        "subnet-ipv4-cidr-block": usual.subnet_ipv4_cidr_block,
                        "subnet-ipv6-cidr-blocks": usual.subnet_ipv6_cidr_blocks})
    return network


def is_in(address: str, block: str) -> bool:
    """Tell whether an address is in a block."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(block)


def without_foreign_interfaces(config: dict, name: str) -> dict:
    """Leave out the [interface] sections of other instances."""
    return {section: settings for section, settings in config.items()
            if not section.startswith("interface ") or settings["instance"] in ("", name)}


CONTAINER_PATH = re.compile("/(v1/credentials|v2/credentials|creds|role)(/.*)?", re.DOTALL)


def credentials_id(query: str) -> Optional[str]:
    """Return the id that the query of POD_PATH names; None if there is none."""
    ids = urllib.parse.parse_qs(query, keep_blank_values=True).get("id")
    return ids[0] if ids else None


class Authorization:
    """What the Authorization header of a request for container credentials must be.

    A text; or the content of a file, read again when it changes, without the blanks around it.
    Nothing is admitted while the file cannot be read.
    """

    def __init__(self, token, path):
        self._token = token
        self._path = path
        self._fingerprint = None
        if path:
            read_file(path, MAX_SOURCE_BYTES)  # an error is one of the configuration

    def admits(self, given: str) -> bool:
        """Tell whether a header has the right value."""
        if self._path:
            self._read_again()
        return bool(self._token) and hmac.compare_digest(given.encode(), self._token.encode())

    def _read_again(self):
        now = fingerprint([self._path])
        if now == self._fingerprint:
            return
        self._fingerprint = now
        try:
            self._token = read_file(self._path, MAX_SOURCE_BYTES).decode("latin-1").strip()
        except OSError:
            self._token = ""
            self._fingerprint = None  # look again, even if the file stays as it is


def authorizations(config: dict) -> Dict[str, Authorization]:
    """Map roles to the Authorization that they need; "" stands for all that have none of their own.

    Raises ConfigError.
    """
    needed = {}
    for section, settings in config.items():
        kind, _, role = section.partition(" ")
        if kind not in ("container", "role"):
            continue
        token, path = settings["authorization-token"], settings["authorization-token-file"]
        if token and path:
            raise ConfigError("authorization-token is set as well; keep one of them",
                              section, "authorization-token-file")
        try:
            if token or path:
                needed[role.strip()] = Authorization(token, path)
        except OSError as error:
            raise ConfigError(
                "%s: %s" % (path, error.strerror), section, "authorization-token-file")
    return needed


ROLE_FORMS = {"instance": role_credentials, "container": task_credentials}


def paths_of_roles(config: dict) -> Dict[str, Tuple[str, Callable]]:
    """Map the paths of [role NAME] to (role, function of ROUTES). Raises ConfigError."""
    paths = {}
    for section, settings in config.items():
        kind, _, role = section.partition(" ")
        for path in settings["path"] if kind == "role" else ():
            if path in paths:
                raise ConfigError("%s is already a path of [role %s]" % (path, paths[path][0]),
                                  section, "path")
            paths[path] = role.strip(), ROLE_FORMS[settings["form"]]
    return paths


def serves_ipv6(config: Configuration) -> bool:
    """Tell whether IMDS is served over IPv6.

    As configured; else, on a box, if the service has its IPv6 address, and elsewhere at any address
    that we are told to bind to.
    """
    wanted = config["metadata-options"]["http-protocol-ipv6"]
    addresses = config["server"]["addresses"]
    return wanted == "enabled" if wanted else not addresses or IMDS_IPV6 in addresses


def allowed_hosts(*lists: Iterable[str]) -> Set[str]:
    """Merge names into one set, in lower case and without a final dot."""
    return {host.lower().rstrip(".") for host in itertools.chain(*lists)}


def read_user_data(settings: dict) -> Optional[bytes]:
    """Return the user data; None if there is none. Raises ConfigError."""
    given = [key for key in ("file", "text", "base64") if settings[key]]
    if len(given) > 1:
        raise ConfigError("%s is set as well; keep one of file, text and base64" % given[0],
                          "user-data", given[1])
    key = "".join(given)
    data = settings["base64"] or settings["text"].encode()
    if key == "file":
        try:
            data = read_file(settings["file"], MAX_USER_DATA + 1)
        except OSError as error:
            raise ConfigError(
                "%s: %s" % (settings["file"], error.strerror), "user-data", "file")
    if len(data) > MAX_USER_DATA:
        raise ConfigError(
            "larger than the %d bytes that EC2 allows" % MAX_USER_DATA, "user-data", key)
    return data or None


def box_id(
    directory: Optional[str] = None,
    paths: Iterable[str] = ("/etc/machine-id", "/var/lib/dbus/machine-id"),
) -> str:
    """Identify this machine by a text that survives reboots and that no other machine has.

    The file `id` of a state directory wins: one line, any text. Where the machine has no id of
    its own, that file is made.
    """
    own_id = read_line(os.path.join(directory, "id")) if directory else ""
    if own_id:
        return own_id
    for path in paths:
        machine_id = read_line(path)
        if len(machine_id) >= 32:  # not while it is "uninitialized"
            return machine_id
    own_id = "%s %012x" % (socket.gethostname(), uuid.getnode())
    if directory:
        keep(os.path.join(directory, "id"), own_id + "\n")
    return own_id


def read_line(path: str) -> str:
    """Return the first line of a file; "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def open_private(path: str, flags: int) -> int:
    """Open a file that only its owner can read."""
    return os.open(path, flags, 0o600)


def keep(path: str, text: str) -> None:
    """Write a file that is whole even after a power cut; do nothing where that is denied."""
    try:
        with open(path + ".new", "w", encoding="utf-8", opener=open_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)
    except OSError:
        pass


# ---------------------------------------------------------------- requests --------------------
#
# A request is checked before anything is decided from it. What is not well-formed by RFC 9112 is
# refused, even where the RFC lets a server be lenient: leniency hides headers (a bare LF, a folded
# line, a blank before the colon), and X-Forwarded-For is one of them.

# Statuses for which the real service has a page, and their reason phrases there.
ERROR_PAGES = {404: "Not Found", 405: "Not Allowed"}

# 339 bytes for a 404 (capture).
ERROR_PAGE = """\
<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t\t "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{status} - {title}</title>
 </head>
 <body>
  <h1>{status} - {title}</h1>
 </body>
</html>
"""


class HTTPError(Response, Exception):
    """A refusal: a response that is raised anywhere, and sent like any other.

    `reason` goes to the log, not to the client. Without a body it gets a short JSON document with
    `words`, or what the real service sends (error-bodies = ec2).
    """

    def __init__(self, status, reason="", headers="", body=None, content_type="application/json",
                 words=""):
        self.words = words
        self.has_usual_body = body is None
        if body is None:
            body = json.dumps({"error": words or phrase(status).lower()})
        super().__init__(body.encode(), status, headers, content_type, reason)

    def in_ec2_form(self) -> Response:
        """Return this refusal as the real service sends it: with a page, or without a body."""
        if self.status not in ERROR_PAGES:
            return Response(b"", self.status, self.headers, reason=self.reason)
        title = ERROR_PAGES[self.status]
        response = Response(
            ERROR_PAGE.format(status=self.status, title=title).encode(), self.status,
            self.headers + "Content-Type: text/html\r\n", reason=self.reason)
        response.status_line = b"HTTP/1.1 %d %s\r\n" % (self.status, title.encode())
        response.last_headers = b""
        return response


class Asked(NamedTuple):
    """A request, and how it was answered; a status of 0 means not at all."""

    method: str
    path: str  # as it was sent, without a query
    status: int
    version: str  # v2: with a session token, or for one; else v1
    user_agent: str


class Request:
    """The head of a request, checked. Raises HTTPError."""

    def __init__(self, line, method, target, minor, headers):
        self.method = method
        self.minor = minor  # of the version of HTTP, 1.1 or 1.0
        self.headers = headers  # names in lower case; repeated ones joined by a comma
        self._line = line
        self._for_log = {}  # limit -> line and user agent
        self.path = self.path_as_sent = self.query = ""
        self.hosts = []  # those it names: in its Host, and in its target if that is absolute
        self.connection_options = self._read_connection_options()
        self.chunked = False
        self.length = 0  # of the body, unless it is chunked
        self.expects_100 = False  # the client sends the body once it has got a 100
        self._read_target(target)
        self._read_framing()

    def for_log(self, limit: int) -> Tuple[str, str]:
        """Return request line and user agent for the log; once made, since clients repeat them."""
        if limit not in self._for_log:
            agent = self.headers.get("user-agent", "")
            self._for_log[limit] = escaped(self._line, limit), escaped(agent, limit)
        return self._for_log[limit]

    @property
    def version(self) -> str:
        """Return v2 for a request with a session token, or for one; else v1."""
        return "v2" if TOKEN_HEADER in self.headers or self.path == TOKEN_PATH else "v1"

    def asked(self, status: int) -> Asked:
        """Sum up the request for a test."""
        return Asked(self.method, self.path_as_sent, status, self.version,
                     self.headers.get("user-agent", ""))

    def _read_target(self, target):
        """Find the path, and the hosts."""
        hosts = [self.headers["host"]] if "host" in self.headers else []
        absolute = ABSOLUTE_FORM.match(target)
        if absolute:
            hosts.append(absolute["host"])
            target = target[absolute.end():] or "/"
        elif not target.startswith("/") and (self.method, target) != ("OPTIONS", "*"):
            raise HTTPError(400, "malformed target")
        self.path = canonical_path(target)
        self.path_as_sent, _, self.query = target.partition("?")
        self.hosts = [host_in(host) for host in hosts]

    def _read_connection_options(self):
        words = self.headers.get("connection", "").split(",")
        return {word.strip().lower() for word in words}

    def keeps_connection(self, has_next: bool) -> bool:
        """Tell whether the connection stays open after the answer.

        As with the real service (capture) only for a client that says keep-alive, since scripts
        with nc wait for the end; and for one whose next request has come already.
        """
        if "close" in self.connection_options:
            return False
        return "keep-alive" in self.connection_options or (has_next and self.minor > 0)

    def _read_framing(self):
        """Find out how long the body is (RFC 9112, section 6), although none is needed."""
        length = self.headers.get("content-length", "0")
        coding = self.headers.get("transfer-encoding")
        if coding is not None:
            self.chunked = True
            has_both = "content-length" in self.headers
            if coding.lower() != "chunked" or has_both or not self.minor:
                raise HTTPError(400, "unsupported or ambiguous Transfer-Encoding")
        if not DECIMAL.fullmatch(length):
            raise HTTPError(400, "malformed Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise HTTPError(413, "body over %d bytes" % MAX_BODY)
        self.length = int(length)
        if self.minor and "expect" in self.headers:
            self._read_expectation(self.headers["expect"])

    def _read_expectation(self, expectation):
        """Refuse Expect, as the real service does, except on a token PUT: s3fs needs a 100."""
        is_token_put = (self.method, self.path) == ("PUT", TOKEN_PATH)
        if expectation.lower() != "100-continue" or not is_token_put:
            raise HTTPError(417, "unsupported Expect")
        self.expects_100 = True


class UnreadableRequest:
    """A stand-in for a request that cannot be read: enough of one to answer and to log it."""

    version = "v1"

    def __init__(self, received):
        self.method = ""
        self.minor = 1
        self._line = re.split(b"[\r\n]", received[:2 * MAX_TARGET], maxsplit=1)[0]

    def for_log(self, limit: int) -> Tuple[str, str]:
        """Return the first line for the log, and no user agent."""
        return escaped(self._line, limit), ""


TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
METHOD_START = re.compile(rb"(%s+)(?: |\Z)" % TCHAR)
REQUEST_LINE = re.compile(rb"(%s+) ([!\"$-~]+) HTTP/(\d)\.(\d)" % TCHAR)
FIELD = re.compile(rb"(%s+):([\t -~\x80-\xff]*)" % TCHAR)
ABSOLUTE_FORM = re.compile(r"http://(?P<host>[^/?]*)", re.IGNORECASE)
REG_NAME = "(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"  # RFC 3986, section 3.2.2
AUTHORITY = re.compile(
    r"(\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>%s?)\.?)(?::[0-9]{0,5})?" % REG_NAME)
DECIMAL = re.compile("0|[1-9][0-9]*")
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
CHUNK_EXTENSION = rb";[ \t]*%s+(?:[ \t]*=[ \t]*(?:%s+|%s))?" % (TCHAR, TCHAR, QUOTED)
CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,8})(?:%s)*\r\n" % CHUNK_EXTENSION)
CHUNK_START = re.compile(rb"(?:[0-9A-Fa-f]{1,8}(?:;[\t -~\x80-\xff]*)?\r?)?")

# Headers that may appear only once: of two, a proxy could believe one and this service the other.
SINGLE_HEADERS = ("host", "content-length", "transfer-encoding", "expect", "authorization",
                  TOKEN_HEADER, TTL_HEADER)


def read_request(received: bytes) -> Tuple[Optional[Request], Optional[int]]:
    """Read the first request in the bytes received; return it and the position of its end.

    The request is None until its head is complete, the end until its body is. Raises HTTPError.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
    if end < 0:
        check_unfinished(received)
        return None, None
    head, end = received[:end], end + 4
    request = cached_head(head) if len(head) <= MAX_CACHED_HEAD else parse_head(head)
    if request.chunked:
        return request, end_of_chunks(received, end)
    end += request.length
    if len(received) < end:
        return request, None
    return request, end


def check_unfinished(received: bytes) -> None:
    """Refuse at once what can never become a request."""
    line, complete, _ = received.partition(b"\r\n")
    method = METHOD_START.match(received)
    if has_bare_end(received) or not method:
        raise HTTPError(400, "malformed request")
    if method.end(1) > MAX_METHOD:
        raise HTTPError(501, "method over %d bytes" % MAX_METHOD)
    if complete:
        parse_line(line)
    elif len(line) > MAX_TARGET + 64:
        raise HTTPError(414, "target over %d bytes" % MAX_TARGET)
    if len(received) > MAX_HEAD:
        raise HTTPError(431, "head over %d bytes" % MAX_HEAD)


def has_bare_end(received: bytes) -> bool:
    """Tell whether a CR or an LF stands without the other; a CR at the end may get its LF."""
    pairs = received.count(b"\r\n")
    returns = received.count(b"\r") - received.endswith(b"\r")
    return received.count(b"\n") != pairs or returns != pairs


def parse_line(line: bytes) -> Tuple[str, str, int]:
    """Take a request line apart: method, target, minor version."""
    match = REQUEST_LINE.fullmatch(line)
    if not match:
        raise HTTPError(400, "malformed request line")
    method, target, major, minor = (part.decode() for part in match.groups())
    if major != "1":
        raise HTTPError(505, "HTTP/%s.%s" % (major, minor))
    if len(target) > MAX_TARGET:
        raise HTTPError(414, "target over %d bytes" % MAX_TARGET)
    if method not in METHODS:
        raise HTTPError(501, "unknown method")
    return method, target, int(minor)


def parse_head(head: bytes) -> Request:
    """Parse a head, given without its empty line."""
    line, *lines = head.split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise HTTPError(431, "over %d header lines" % MAX_FIELDS)
    method, target, minor = parse_line(line)
    return Request(line, method, target, minor, parse_fields(lines))


# Clients send the same head repeatedly; this saves half the time of a request.
cached_head = functools.lru_cache(maxsize=64)(parse_head)


def parse_fields(lines: List[bytes]) -> Dict[str, str]:
    """Parse header lines into {name in lower case: value}."""
    fields = {}
    for line in lines:
        match = FIELD.fullmatch(line)
        if not match:
            raise HTTPError(400, "malformed header line")
        name = match.group(1).decode().lower()
        value = match.group(2).strip(b" \t").decode("latin-1")
        if name in fields:
            if name in SINGLE_HEADERS:
                raise HTTPError(400, "repeated " + name)
            value = fields[name] + "," + value
        fields[name] = value
    return fields


def host_in(text: str) -> Union[str, ipaddress.IPv4Address, ipaddress.IPv6Address]:
    """Take the host from HOST, HOST:PORT or [IPV6]:PORT: an address, or a name in lower case.

    A final dot does not count; an IPv4 address in the form of IPv6 is one of IPv4.
    """
    match = AUTHORITY.fullmatch(text)
    if not match:
        raise HTTPError(400, "malformed Host")
    try:
        if match["ipv6"]:
            address = ipaddress.IPv6Address(match["ipv6"])
            return address.ipv4_mapped or address
        return ipaddress.IPv4Address(match["name"])
    except ValueError:
        if match["ipv6"]:
            raise HTTPError(400, "malformed Host")
    return match["name"].lower()


def end_of_chunks(received: bytes, start: int) -> Optional[int]:
    """Find the end of a chunked body; None until it is complete (RFC 9112, section 7.1)."""
    at = start
    for _ in range(MAX_CHUNKS):
        head = CHUNK_HEAD.match(received[at:at + MAX_CHUNK_HEAD])
        if not head:
            check_unfinished_chunk(received[at:], at - start)
            return None
        size = int(head.group(1), 16)
        if at + size - start > MAX_BODY:
            raise HTTPError(413, "body over %d bytes" % MAX_BODY)
        at += head.end()
        if not size:
            return end_of_trailers(received, at)
        at += size + 2
        if len(received) < at:
            return None
        if received[at - 2:at] != b"\r\n":
            raise HTTPError(400, "malformed chunk")
    raise HTTPError(413, "over %d chunks" % MAX_CHUNKS)


def check_unfinished_chunk(received: bytes, before: int) -> None:
    """Refuse what can never become the head of a chunk, `before` bytes into the body."""
    if not CHUNK_START.fullmatch(received):
        raise HTTPError(400, "malformed chunk")
    if before + len(received) > MAX_BODY:
        raise HTTPError(413, "body over %d bytes" % MAX_BODY)


def end_of_trailers(received: bytes, start: int) -> Optional[int]:
    """Find the end of the header lines after the last chunk; None until they are complete."""
    if received.startswith(b"\r\n", start):
        return start + 2
    trailers, is_complete, _ = received[start:].partition(b"\r\n\r\n")
    if len(trailers) > MAX_HEAD:
        raise HTTPError(431, "trailers over %d bytes" % MAX_HEAD)
    if has_bare_end(trailers):
        raise HTTPError(400, "malformed trailer")
    if not is_complete:
        return None
    if not all(map(FIELD.fullmatch, trailers.split(b"\r\n"))):
        raise HTTPError(400, "malformed trailer")
    return start + len(trailers) + 4


# ---------------------------------------------------------------- handler ---------------------

READ, WRITE, NOTHING = selectors.EVENT_READ, selectors.EVENT_WRITE, 0
ESTABLISHED = b"\x01"  # the first byte of TCP_INFO (tcp(7)): nobody has closed


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection: http.server's handler, written as a generator.

    Where http.server would block, `handle` yields (event, deadline): what it waits for on its
    connection, READ, WRITE or NOTHING (a timer will resume it), and until when, on the monotonic
    clock. The server resumes it when the event has come, raises TimeoutError in it when the
    deadline has passed, and closes the connection when it ends. Any OSError ends it quietly;
    TimeoutError is one.

    `do_GET` and the like return a Response or raise an HTTPError, which is one too.
    `send_response` is the only place that writes status, headers and body.
    """

    protocol_version = "HTTP/1.1"

    def __init__(self, request, client_address, server):
        # Not super().__init__(), which handles the whole connection before it returns. The
        # argument is what socketserver calls a request, a connection; self.request is an HTTP one.
        self.connection = request
        self.client_address = client_address
        self.server = server
        self.close_connection = False
        self.received = b""  # bytes that no request has taken yet
        self.is_due = False  # the time that it waits for is over
        self.pipelined = 0  # requests whose beginning came before the answer to the one in front
        self.request = None  # the Request that is being answered
        self.is_admitted = False  # its Host is known
        self.service = None  # the one that answers it, even if a reload replaces it meanwhile
        self.form = INSTANCE_FORM  # of the endpoint that it is for
        self.is_hidden = False  # it is for a container endpoint at the address of IMDS
        self.tree = None  # the instance that its client sees
        self.found = None  # what is served at its path
        self.document = None  # the current document there
        self.faults = {}  # {action: Strike} of the faults that match it
        self.struck = ()  # words for the log, of those that have taken effect
        self.token_ttl = None  # seconds that its session token has left
        self.began = None  # when it had arrived in full, on the monotonic clock
        self._user = self  # that of the client; itself until somebody asks

    def handle(self):
        """Answer one request after the other, until one of them is the last."""
        try:
            self.received = self.receive_at_once()
            while not self.close_connection:
                yield from self.handle_one_request()
        except HTTPError as error:
            yield from self.send_error(error.status, error.reason)
        except TimeoutError:
            if self.received and not self.request and not self.server.stopping:
                yield from self.send_error(408, "incomplete request after %d s" % REQUEST_SECONDS)

    def handle_one_request(self):
        """Receive a request and answer it."""
        self.forget_request()
        self.request = yield from self.receive()
        response = yield from self.respond()
        yield from self.send_response(response)

    def forget_request(self):
        """Get ready for another request."""
        self.request = self.service = self.tree = self.found = self.document = None
        self.form, self.is_hidden = INSTANCE_FORM, False
        self.is_admitted = False
        self.token_ttl = self.began = None
        self.faults, self.struck = {}, ()

    def is_idle(self):
        """Tell whether no request is under way."""
        return not self.request and not self.received

    # Receiving.

    def receive(self):
        """Receive the next request. Raises HTTPError if it is malformed, OSError if none comes."""
        if self.received:
            yield from self.take_turns()
        deadline = self.server.now + IDLE_SECONDS
        asked = False
        while True:
            if self.received:
                request, end = self.read_received()
                if end is not None:
                    break
                if request and request.expects_100 and not asked:
                    asked = True
                    yield from self.handle_expect_100()
                if self.received:  # min: bytes that trickle in must not move it
                    deadline = min(deadline, self.server.now + REQUEST_SECONDS)
            data = yield from self.receive_bytes(deadline)
            if not data:
                raise ConnectionAbortedError("closed by the client")
            self.received += data
        self.received = self.received[end:]
        # Not an empty line, which scripts with `echo -e "GET ...\r\n\r\n"` send after it.
        has_next = bool(self.received.strip(b"\r\n"))
        self.close_connection = not request.keeps_connection(has_next)
        return request

    def read_received(self):
        """Read a request from what has come, skipping empty lines (RFC 9112, section 2.2)."""
        if self.received.startswith(b"\r"):
            self.received = re.sub(rb"\A(?:\r\n)+", b"", self.received)
            if self.received in (b"", b"\r"):
                return None, None
        return read_request(self.received)

    def receive_bytes(self, deadline):
        """Wait for what the client sends next; b"" means that it has closed."""
        while True:
            yield READ, deadline
            try:
                return self.connection.recv(RECEIVE_BYTES)
            except BlockingIOError:
                pass

    def receive_at_once(self):
        """Receive what has come already: a new connection often brings its request along.

        Later requests do not, so `receive_bytes` waits first and saves a futile recv() for each.
        """
        try:
            return self.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b""

    def take_turns(self):
        """Let others go first once in a while, however many requests one client pipelines."""
        self.pipelined += 1
        if self.pipelined % REQUESTS_PER_TURN == 0:
            yield from self.sleep(0, NOTHING)  # a half-closed one gets all its answers

    def handle_expect_100(self):
        """Ask for the body that the client holds back until then."""
        yield from self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def sleep(self, seconds, event=READ):
        """Wait some seconds; others are served meanwhile. Raises OSError when the client goes."""
        self.is_due = False
        timer = self.server.call_later(seconds, self.wake_up)
        try:
            while True:
                yield event, FOREVER
                if self.is_due:
                    return
                event = self.look_at_client()
        except ConnectionAbortedError:
            self.log_request(0, reason="client closed the connection")
            raise
        finally:
            self.server.cancel(timer)

    def wake_up(self):
        """Resume after a timer."""
        self.is_due = True
        self.server.resume(self)

    def look_at_client(self):
        """Choose what to wait for next: only for time, once another request has come."""
        try:
            if self.connection.recv(1, socket.MSG_PEEK):
                return NOTHING
        except BlockingIOError:
            return READ
        raise ConnectionAbortedError("closed by the client")

    def has_lost_client(self):
        """Tell whether the client of a postponed request closed after bytes that are unread."""
        if not self.request:
            return False
        return self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != ESTABLISHED

    # Deciding.

    def respond(self):
        """Decide on the response. Raises OSError if the request is to stay without one."""
        self.began = time.monotonic()
        self.service = self.server.service
        try:
            self.look_at_endpoint()
            self.check_host()
            self.tree = self.service.seen_by(plain_address(self.client_address), self.user)
            if self.service.faults:
                yield from self.apply_faults()
            self.admit()
            self.found = self.find()
            if self.found:
                self.document = self.found.current()
                if not self.document:
                    yield from self.wait_for_document()
            response = getattr(self, "do_" + self.request.method)()
            if response.hop_limit == 0:
                yield from self.leave_in_the_dark()
            if self.faults:
                return self.shorten(response)
            return response
        except HTTPError as error:
            return error
        except OSError:  # a fault; or the client has gone, or the server stopped, meanwhile
            raise
        except Exception as error:
            return HTTPError(500, place_of(error))

    def apply_faults(self):
        """Wait, refuse or fall silent, as the faults that match the request demand.

        "code" and "expired" take effect in `do_GET`, "empty" and "truncate" in `shorten`.
        """
        has_token = TOKEN_HEADER in self.request.headers
        self.faults = self.service.fault_actions(self.request.path, has_token, self.tree)
        if "delay" in self.faults:
            yield from self.sleep(self.strike("delay"))
        for action in self.faults:
            if action == "status":
                raise HTTPError(self.strike(action))
            if action == "refuse-token":
                self.strike(action)
                raise HTTPError(401)
            if action in ("reset", "no-answer"):
                yield from self.leave_unanswered(action)

    def strike(self, action):
        """Return the value of an action, and note for the log that it takes effect."""
        strike = self.faults[action]
        self.struck += (strike.words,)
        return strike.value

    def leave_unanswered(self, action):
        """End the connection without an answer: by a reset, or when the client gives up."""
        self.strike(action)
        self.log_request(0)
        if action == "reset":
            self.reset_when_closed()
        else:
            yield from self.discard(FOREVER)
        raise ConnectionAbortedError("a fault leaves the request unanswered")

    def leave_in_the_dark(self):
        """Send nothing where the answer would die on its way; the client waits until it gives up.
        """
        self.log_request(0, reason="not sent: http-put-response-hop-limit is 1, and the client is "
                                   "one hop away")
        yield from self.discard(self.server.now + SILENCE_SECONDS)
        raise ConnectionAbortedError("the client has given up")

    def shorten(self, response):
        """Cut off the end of a body, or all of it, as the faults demand."""
        if response.status != 200 or not response.body:
            return response
        if "empty" in self.faults:
            self.strike("empty")
            return shortened(response, 0)
        if "truncate" in self.faults:
            return shortened(response, self.strike("truncate"))
        return response

    def check_host(self):
        """Refuse an unknown Host, before anything is done for the request.

        A web page that has rebound its name to this address comes with an unknown one. An address
        cannot be rebound.
        """
        for host in self.request.hosts:
            if isinstance(host, str) and host not in self.service.hosts:
                reason = "host %s is not allowed; add it to allowed-hosts in [server]" % (
                    escaped(host, MAX_REFUSED_LINE))
                raise HTTPError(403, reason, words=reason)
        self.is_admitted = True

    def admit(self):
        """Check that the endpoint is enabled and the session token valid."""
        if not self.service.enabled:
            raise HTTPError(403, "http-endpoint is disabled")
        if self.form.for_containers:
            return  # `authorize` does it, once the role is known
        if not self.service.serves_ipv6 and ":" in plain_address(self.client_address):
            raise HTTPError(403, "http-protocol-ipv6 is disabled")
        if (self.request.method, self.request.path) != ("PUT", TOKEN_PATH):
            self.check_token(self.request.headers.get(TOKEN_HEADER))

    def check_token(self, token):
        """Require a session token where http-tokens says so; refuse a bad one everywhere.

        Agents probe with a bad one, to see whether this is a metadata service.
        """
        if token is None:
            if self.service.token_required:
                raise HTTPError(401, "no session token, and http-tokens is required")
            return
        remaining = self.server.tokens.remaining(token)
        if remaining is None:
            raise HTTPError(401, "session token has expired or was not issued here")
        self.token_ttl = int(remaining)

    def look_at_endpoint(self):
        """Tell container endpoints from IMDS.

        At the address of IMDS they are not there: a plain GET must not get what needs a session
        token.
        """
        if not self.service.is_for_containers(self.request.path):
            return
        hosts = self.request.hosts
        if hosts and IMDS_ADDRESSES.isdisjoint(hosts):
            self.form = container_form(self.request.path, self.request.query)
        else:
            self.is_hidden = True

    def find(self):
        """Find what is served at the path; None if there is nothing."""
        if self.is_hidden:
            return None
        if not self.form.for_containers:
            return self.tree.find(self.request.path)
        given = self.request.headers.get("authorization", "")
        found = self.service.find_for_container(
            self.request.path, self.request.query, given, self.tree)
        self.authorize(found, given)
        return found

    def authorize(self, found, given):
        """Require the Authorization that credentials need; where v1 is off, they need one."""
        wanted = self.service.authorization_of(found)
        if not wanted and self.service.token_required:
            raise text_error(404, "404 page not found", (
                "http-tokens is required, and no authorization-token is configured"))
        if wanted and not wanted.admits(given):
            raise self.form.unauthorized(given)

    def wait_for_document(self):
        """Wait for credentials or a signature under way, for as long as clients have patience."""
        if self.request.method not in ("GET", "HEAD") or "code" in self.faults:
            return  # it would not be shown
        give_up = self.began + self.found.patience
        while self.found.pending and time.monotonic() < give_up:
            yield from self.sleep(DOCUMENT_POLL)
            self.document = self.found.current()
            if self.document:
                return

    def do_GET(self):
        """Answer with the document at the path, or with the listing of a directory."""
        if self.request.path == TOKEN_PATH:
            raise HTTPError(405, headers=TOKEN_METHODS)
        now = self.service.clock()
        if not self.found:
            return self.form.not_found()
        if "code" in self.faults:
            code, message = self.strike("code")
            if not message:
                message = self.tree.failure_message(
                    code, self.found, self.faults["code"].fault)
            return self.form.failure(400, code, message, now)
        if not self.document and isinstance(self.found, SignedDocument):
            raise HTTPError(503, "the signature is not ready yet")
        if not self.document:
            return self.form.failure(
                503, "Failed", "there are no credentials for %s now; the log of fake-metadata "
                "says why" % self.found.credentials.role, now)
        if "expired" in self.faults:
            self.strike("expired")
            return expired_copy(self.document, now)
        return self.document

    do_HEAD = do_GET  # send_response leaves the body out

    def do_PUT(self):
        """Issue a session token (EC2 User Guide); with a TTL of 0, an expired one (capture)."""
        if self.request.path != TOKEN_PATH:
            raise HTTPError(403, "PUT is for /latest/api/token")
        if "x-forwarded-for" in self.request.headers:  # a sign of SSRF through an open proxy
            raise HTTPError(403, "X-Forwarded-For: session tokens are not issued through a proxy")
        ttl = self.request.headers.get(TTL_HEADER, "")
        if not re.fullmatch("[0-9]{1,5}", ttl) or int(ttl) > MAX_TOKEN_TTL:
            raise HTTPError(400, "%s must be 0 to %d" % (TTL_HEADER, MAX_TOKEN_TTL))
        self.token_ttl = int(ttl)
        response = Response(self.server.tokens.issue(self.token_ttl).encode())
        response.hop_limit = self.service.hop_limit - self.hops_away()
        return response

    def user(self):
        """Return the Unix user of the client, looked up once; None if it is unknown."""
        if self._user is self:
            self._user = self.server.users.user_of(self.connection, self.client_address)
        return self._user

    def hops_away(self):
        """Count the hops to the client: one where it came in by an interface of CONTAINERS.

        What comes from elsewhere to one of the service's addresses was let in there; what comes
        from this box has not left it.
        """
        local = plain_address(self.connection.getsockname())
        return int(local in SERVICE_ADDRESSES and not is_own(plain_address(self.client_address)))

    def do_OPTIONS(self):
        """List the methods that a path allows (capture)."""
        if self.request.path == TOKEN_PATH:
            return Response(headers=TOKEN_METHODS)
        if not self.found and self.request.path != "/*":
            raise HTTPError(404)
        return Response(headers="Allow: OPTIONS, GET, HEAD\r\n")

    def do_POST(self):
        """Refuse what the real service refuses with 403 (captured for POST and DELETE)."""
        if self.request.path == TOKEN_PATH:
            raise HTTPError(405, headers=TOKEN_METHODS)
        raise HTTPError(403, "%s is not allowed" % self.request.method)

    do_DELETE = do_PATCH = do_TRACE = do_CONNECT = do_POST

    # Sending.

    def send_response(self, response):
        """Log a response, and send it in one piece: status, headers, body."""
        if self.server.stopping:
            self.close_connection = True
        if isinstance(response, HTTPError) and response.has_usual_body:
            service = self.service or self.server.service
            response = self.form.refusal(response, service.error_bodies)
        body = b"" if self.request.method == "HEAD" else response.body
        self.log_request(response.status, len(body), response.reason)
        data = b"".join((
            response.status_line, self.token_header(), response.first_headers,
            self.server.common_headers, self.connection_header(), response.last_headers,
            b"\r\n", body))
        if response.hop_limit:
            yield from self.send_with_hop_limit(data, response.hop_limit)
        else:
            yield from self.send(data)

    def token_header(self):
        """Tell how many seconds the session token has left; on refusals too (capture)."""
        if self.token_ttl is None:
            return b""
        return b"X-Aws-Ec2-Metadata-Token-Ttl-Seconds: %d\r\n" % self.token_ttl

    def connection_header(self):
        """Say what becomes of the connection, unless it is what the version of HTTP implies."""
        if self.close_connection:
            return b"Connection: close\r\n"
        return b"" if self.request.minor else b"Connection: keep-alive\r\n"

    def send(self, data):
        """Send bytes as fast as the client takes them."""
        while data:
            try:
                sent = self.connection.send(data)
            except BlockingIOError:
                sent = 0
            data = data[sent:]
            if data:
                yield WRITE, self.server.now + REQUEST_SECONDS

    def send_with_hop_limit(self, data, hops):
        """Send bytes in packets that live for some hops only (EC2 User Guide): a session token.

        All that follows on the connection does too, since TCP sends again, with the limit of that
        moment, what nobody has acknowledged.
        """
        self.connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
        if self.connection.family == socket.AF_INET6:  # whose client may be an IPv4 one
            self.connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        yield from self.send(data)

    def send_error(self, code, message=None, explain=None):
        """Answer what cannot be read as a request; the message goes to the log.

        The connection ends with it, since nobody knows where the next request would begin.
        """
        self.forget_request()
        self.request = UnreadableRequest(self.received)
        self.received = b""
        self.close_connection = True
        yield from self.send_response(HTTPError(code, message or ""))
        yield from self.linger()

    def linger(self):
        """Read on until the client has seen the answer and closes.

        To close before it, with bytes of the client unread, would reset the connection, and the
        client would lose the answer.
        """
        self.connection.shutdown(socket.SHUT_WR)
        yield from self.discard(self.server.now + LINGER_SECONDS)

    def discard(self, deadline):
        """Read what comes and throw it away, until the client closes."""
        while (yield from self.receive_bytes(deadline)):
            pass

    def reset_when_closed(self):
        """Have the connection reset rather than closed (SO_LINGER with a time of 0)."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    # Other hooks of http.server.

    def version_string(self):
        """Name the server as the real one does, without the version of Python."""
        return SERVER_NAME

    def log_request(self, code="-", size=0, reason=""):
        """Log a request that is answered, or left without an answer."""
        seconds = time.monotonic() - self.began if self.began else 0
        limit = MAX_LOGGED_LINE if self.is_admitted else MAX_REFUSED_LINE
        if self.struck:
            reason = "; ".join(filter(None, (*self.struck, reason)))
        client = None
        if self.service and self.service.logs_clients:
            client = self.client_in_words
        self.server.log.request(
            self.address_string(), self.request, code, size, seconds, reason, limit, client)
        if self.server.requests is not None and isinstance(self.request, Request):
            self.server.requests.append(self.request.asked(code))

    def client_in_words(self):
        """Describe the client for the log: version of IMDS, and user if it is on this box."""
        words = self.request.version
        if self.server.has_address(plain_address(self.client_address)):
            words += " user=" + (self.user() or "?")
        return words

    def log_message(self, format, *args):
        """Log a message that is not about a request."""
        self.server.log.say(format % args)


class InstanceForm:
    """How IMDS reports that something does not exist, or is not available."""

    for_containers = False

    def refusal(self, error, error_bodies):
        """Return a refusal as error-bodies wants it."""
        return error.in_ec2_form() if error_bodies == "ec2" else error

    def not_found(self):
        """Refuse a path."""
        return HTTPError(404)

    def failure(self, status, code, message, now):
        """Render the document in place of credentials: a 200 with another "Code" than Success."""
        return Document(failure_document(code, message, now), modified=now)


class TaskForm:
    """How the ECS agent reports that (amazon-ecs-agent, tmds/handlers): in JSON."""

    for_containers = True

    def __init__(self, version, role):
        self.version = version  # "V1" or "V2"
        self.role = role  # that was asked for

    def refusal(self, error, error_bodies):
        """Return a refusal in this form, whatever error-bodies says."""
        message = phrase(error.status)
        return self._error(error.status, message.title().replace(" ", ""), error.words or message,
                           error.reason)

    def not_found(self):
        """Refuse a role that does not exist, or was not named."""
        request = "Credentials%sRequest: " % self.version
        if not self.role:
            message = request + "No Credential ID in the request"
            return self._error(400, "NoIdInRequest", message)
        return self._error(400, "InvalidIdInRequest", request + "Credentials not found")

    def unauthorized(self, given):
        """Refuse an Authorization; the agent itself asks for none."""
        return self._error(401, "AccessDenied", "the Authorization header is missing or wrong")

    def failure(self, status, code, message, now):
        """Say why there are no credentials."""
        return self._error(status, code, message)

    def _error(self, status, code, message, reason=""):
        fields = {"code": code, "message": message, "HTTPErrorCode": status}
        return HTTPError(status, reason or message, body=compact_json(fields))


class TextForm:
    """How ECS local container endpoints report that: in a line of text, as Go's http.Error does."""

    for_containers = True

    def refusal(self, error, error_bodies):
        """Return a refusal in this form, whatever error-bodies says."""
        return text_error(error.status, error.words or phrase(error.status), error.reason)

    def not_found(self):
        """Refuse a path."""
        return text_error(404, "404 page not found")

    def unauthorized(self, given):
        """Refuse an Authorization."""
        return text_error(401, "the Authorization header is missing or wrong")

    def failure(self, status, code, message, now):
        """Say why there are no credentials."""
        return text_error(status, "%s: %s" % (code, message))


class PodForm(TextForm):
    """How the EKS Pod Identity agent reports that (eks-pod-identity-agent, pkg/handlers)."""

    def unauthorized(self, given):
        """Refuse an Authorization."""
        message = "Service account token cannot be empty"
        if given:
            message = "Service account token cannot be parsed: it is not configured"
        return text_error(400, message, "the Authorization header is missing or wrong")


INSTANCE_FORM = InstanceForm()


def container_form(path: str, query: str) -> Union[TaskForm, TextForm]:
    """Return the form of a container endpoint."""
    if path == POD_PATH:
        role = credentials_id(query)
        return PodForm() if role is None else TaskForm("V1", role)
    if path.startswith(("/v1/", "/creds", "/role")):
        return TextForm()
    return TaskForm("V2", path.partition("/v2/credentials/")[2])


def text_error(status: int, message: str, reason: str = "") -> HTTPError:
    """Make a refusal in a line of text."""
    return HTTPError(
        status, reason or message, "X-Content-Type-Options: nosniff\r\n", message + "\n",
        "text/plain; charset=utf-8")


def explanation_of(error: Exception) -> str:
    """Return the text of an error, of the system or ours, without its number."""
    return getattr(error, "strerror", None) or str(error)


def place_of(error: BaseException) -> str:
    """Tell kind and place of an unexpected error; not its text, which may hold a secret."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "%s in %s, line %d" % (type(error).__name__, frame.name, frame.lineno)


# ---------------------------------------------------------------- server ----------------------

class Server(http.server.HTTPServer):
    """One thread and one loop for all connections, as the documentation of socketserver has it:

        Another approach to handling multiple simultaneous requests in an environment that
        supports neither threads nor fork() (or where these are too expensive or inappropriate
        for the service) is to maintain an explicit table of partially finished requests and to
        use selectors to decide which request to work on next (or whether to handle a new
        incoming request).

    The table is `unfinished`. Threads cost four times the processor time, asyncio 1.9 times for
    new connections. Nothing may block in this thread: it would stop the service for everybody.

    `service` is the MetadataService that answers; another one may take its place at any time.
    Other threads may call `call_soon_threadsafe` and `shutdown` only.
    """

    request_queue_size = 1024  # with the usual 5, half of 200 clients at once go unanswered

    def __init__(self, addresses, tokens, log, clock=time.time):
        # Not super().__init__(), which makes a socket for one address; here there may be several.
        socketserver.BaseServer.__init__(self, addresses[0], Handler)
        self.places = places_of(addresses)
        self.listeners = {}  # Place -> its listening socket
        self.service = None
        self.tokens = tokens
        self.log = log
        self.clock = clock
        self.common_headers = b""  # of all answers in a round
        self.stopping = False
        self.max_connections = connection_limit()
        self.users = ClientUsers()
        self.requests = None  # a deque, where somebody wants to know of each: see Asked
        self.unfinished = {}  # connection -> its Task
        self._own_addresses = set()  # of this machine, as seen in this second
        self._stop_at = FOREVER
        self._is_listening = False
        self._short_of_files = False
        self._timers = []  # (due, number, callback), a heap
        self._timer_numbers = itertools.count()
        self._soon = collections.deque()  # callbacks of other threads
        self._has_stopped = threading.Event()
        self._has_stopped.set()
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._waker = socket.socketpair()
        for end in (self._wake_receiver, self._waker):
            end.setblocking(False)
        self._selector.register(self._wake_receiver, READ, self._wake)
        self.now = 0  # monotonic clock, as of the beginning of a round
        self._second = None
        self._look_at_clocks()

    def server_bind(self):
        """Bind all places. Raises OSError, which says which one is not available."""
        for place in self.places:
            self.listeners[place] = place.bind()
        self._name_server()

    def server_activate(self):
        """Open the ports."""
        for place in self.places:
            self._activate(place)
        self._listen(True)

    def move(self, addresses: List[Tuple[str, int]]) -> None:
        """Close and open ports, so that it listens at these (host, port) from now on.

        Those that stay are not touched. After an OSError it listens where it did before.
        """
        if self.stopping:
            return
        former = self.places
        try:
            self._move(places_of(addresses))
        except OSError:
            self._move(former)
            raise

    def _move(self, places):
        """Close ports that are no longer wanted before opening others: they may overlap."""
        for place in set(self.listeners).difference(places):
            self._close_listener(place)
        self.places = places
        for place in places:
            if place not in self.listeners:
                self.listeners[place] = place.bind()
                if self._is_listening:
                    self._watch_listener(place)
                self._activate(place)
        self._name_server()

    def _activate(self, place):
        with place.explained():
            self.listeners[place].listen(self.request_queue_size)

    def _close_listener(self, place):
        """Close a port; serve the clients that have connected already."""
        listener = self.listeners.pop(place)
        if self._is_listening:
            while self.accept_requests(listener):
                pass
            self._selector.unregister(listener)
        listener.close()

    def _name_server(self):
        """Note where the first place is, as HTTPServer does (without asking the DNS)."""
        self.server_address = self.listeners[self.places[0]].getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def serve_forever(self, poll_interval=0.5):
        """Serve until `shutdown` or `stop`, and then until what is in flight is done."""
        self._has_stopped.clear()
        try:
            self.close_overdue()
            while not self.stopping or self.unfinished:
                self.serve_once()
            self.log.flush()
        finally:
            self._has_stopped.set()

    def serve_once(self):
        """Serve what is ready; wait for it, or for the next timer."""
        timeout = None
        if self._timers:
            timeout = max(0, self._timers[0][0] - time.monotonic())
        ready = self._selector.select(timeout)
        self._look_at_clocks()
        for key, _ in ready:
            key.data()
        self.service_actions()

    def service_actions(self):
        """Call what is due, and write the log of this round."""
        while self._soon:
            self._call(self._soon.popleft())
        while self._timers and self._timers[0][0] <= self.now:
            self._call(heapq.heappop(self._timers)[2])
        self.log.flush()

    def shutdown(self):
        """Stop serve_forever and wait until it has ended; to be called by another thread."""
        self.call_soon_threadsafe(self.stop)
        self._has_stopped.wait()

    def stop(self, patience=STOP_SECONDS):
        """Accept what has come so far and no more; finish what is in flight within some seconds."""
        if self.stopping:
            return
        self.stopping = True
        self._stop_at = time.monotonic() + patience
        for place in list(self.listeners):
            self._close_listener(place)
        for task in list(self.unfinished.values()):
            if task.handler.is_idle():
                self.resume(task.handler)  # for a request that has come and is not read yet
            if task.handler.is_idle():
                self.shutdown_request(task.handler.connection)

    def server_close(self):
        """Close all sockets."""
        for connection in list(self.unfinished):
            self.shutdown_request(connection)
        for listener in self.listeners.values():
            listener.close()
        self.users.close()
        self._selector.close()
        self._wake_receiver.close()
        self._waker.close()

    # Connections.

    def accept_requests(self, listener):
        """Take connections that have come to a port; True if there may be more than a batch.

        All are accepted before any is answered: one client after the other, each answered at once,
        could keep this loop going, and everybody else waiting.
        """
        accepted = list(itertools.islice(self._accept(listener), ACCEPT_BATCH))
        for request, client_address in accepted:
            self._begin(request, client_address)
        return len(accepted) == ACCEPT_BATCH

    def _accept(self, listener):
        """Yield connections for as long as there are some."""
        while True:
            try:
                connection = self.get_request(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    self._pause_accepting()
                    return
                continue  # the client has gone already
            self._short_of_files = False
            yield connection

    def _begin(self, request, client_address):
        """Begin with a connection, as BaseServer does it."""
        try:
            if self.verify_request(request, client_address):
                self.process_request(request, client_address)
                return
        except OSError:  # the client has gone already
            pass
        except Exception:
            self.handle_error(request, client_address)
        self.shutdown_request(request)

    def get_request(self, listener):
        """Take a connection; return it and the address of the client."""
        request, client_address = listener.accept()
        request.setblocking(False)
        return request, client_address

    def verify_request(self, request, client_address):
        """Turn away, without a word, a client from elsewhere that came to a loopback address.

        The kernel lets it in where route_localnet is set, and a rule or a route leads it there. If
        there are too many connections, the client gets a 503.
        """
        peer = plain_address(client_address)
        if is_loopback(plain_address(request.getsockname())) and not self.has_address(peer):
            self.log.refuse(peer, "refused: not from this box, but sent to a loopback address")
            return False
        if len(self.unfinished) < self.max_connections or self._close_oldest_idle():
            return True
        handler = self.RequestHandlerClass(request, client_address, self)
        answer = handler.send_error(503, "over %d connections" % self.max_connections)
        next(answer, None)  # as far as it comes without waiting
        return False

    def has_address(self, host: str) -> bool:
        """Tell whether an address is this machine's, asking the kernel once a second for each."""
        if host not in self._own_addresses and is_own(host):
            self._own_addresses.add(host)
        return host in self._own_addresses

    def _close_oldest_idle(self):
        """Close the connection that has been idle for longest; False if none is idle.

        So that nobody keeps all others out by connections without requests.
        """
        idle = [task for task in self.unfinished.values() if task.handler.is_idle()]
        for task in sorted(idle, key=operator.attrgetter("deadline")):
            self.resume(task.handler)  # for a request that has come and is not read yet
            if task.handler.is_idle():
                self.shutdown_request(task.handler.connection)
            if len(self.unfinished) < self.max_connections:
                return True
        return False

    def process_request(self, request, client_address):
        """Begin with a connection, and keep it in the table until it is finished."""
        handler = self.RequestHandlerClass(request, client_address, self)
        resume = functools.partial(self.resume, handler)
        self.unfinished[request] = Task(handler, handler.handle(), resume)
        self.resume(handler)

    def resume(self, handler, error=None):
        """Let a handler go on, or raise an error in it, unless it has ended meanwhile."""
        task = self.unfinished.get(handler.connection)
        if not task:
            return
        try:
            event, task.deadline = task.generator.throw(error) if error else next(task.generator)
            if event != task.event:
                self._watch(task, event)
        except (StopIteration, OSError):
            self.shutdown_request(handler.connection)
        except Exception:
            self.handle_error(handler.connection, handler.client_address)
            self.shutdown_request(handler.connection)

    def shutdown_request(self, request):
        """End a connection, whatever its handler waits for."""
        task = self.unfinished.pop(request, None)
        if task:
            self._watch(task, NOTHING)
            task.generator.close()
        self.close_request(request)

    def handle_error(self, request, client_address):
        """Log a bug of ours: it may cost a connection, never the service."""
        self.log.say("internal error: %s" % place_of(sys.exc_info()[1]))

    def is_full(self) -> bool:
        """Tell whether new connections have to wait, or cost others theirs."""
        return self._short_of_files or len(self.unfinished) >= self.max_connections

    def peers(self) -> Set[Tuple[str, int]]:
        """Return the address and port of each client that is connected."""
        addresses = [task.handler.client_address for task in self.unfinished.values()]
        return {(plain_address(address), address[1]) for address in addresses}

    def close_overdue(self):
        """Raise TimeoutError in handlers whose deadline has passed; repeat every second."""
        self.call_later(SWEEP_SECONDS, self.close_overdue)
        self._forget_cancelled()
        self._own_addresses.clear()
        self.log.sum_refusals()
        for task in list(self.unfinished.values()):
            if min(task.deadline, self._stop_at) < self.now:
                self.resume(task.handler, TimeoutError())
            elif task.event == NOTHING and task.handler.has_lost_client():
                self.resume(task.handler, ConnectionAbortedError("closed by the client"))

    # Callbacks.

    def call_later(self, delay: float, callback: Callable[[], Any]) -> list:
        """Have something called after a delay in seconds; return what `cancel` takes."""
        timer = [time.monotonic() + delay, next(self._timer_numbers), callback]
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: list) -> None:
        """Have a timer call nothing."""
        timer[2] = self._do_nothing

    def _forget_cancelled(self):
        """Forget timers that call nothing: that of a long delay would stay for as long."""
        self._timers = [timer for timer in self._timers if timer[2] is not self._do_nothing]
        heapq.heapify(self._timers)

    def call_soon_threadsafe(self, callback: Callable[[], Any]) -> None:
        """Have something called in the thread of the server, soon.

        For other threads and for signal handlers. What is waiting already is not called twice:
        signals may come in storms.
        """
        if callback not in self._soon:
            self._soon.append(callback)
        try:
            self._waker.send(b"\0")
        except OSError:  # full: it is awake anyhow; closed: it has stopped
            pass

    def _look_at_clocks(self):
        """Note the time of this round; once a second, render the headers that all answers share."""
        self.now = time.monotonic()
        second = int(self.clock())
        if second != self._second:
            self._second = second
            self.common_headers = ("Date: %s\r\nServer: %s\r\n" % (
                http_date(second), SERVER_NAME)).encode()

    @staticmethod
    def _do_nothing():
        pass

    def _call(self, callback):
        try:
            callback()
        except Exception:
            self.handle_error(None, None)

    def _wake(self):
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass

    def _watch(self, task, event):
        """Have a handler resumed when its connection is ready for an event, or not at all."""
        connection = task.handler.connection
        if event == NOTHING:
            if task.event != NOTHING:
                self._selector.unregister(connection)
        elif task.event == NOTHING:
            self._selector.register(connection, event, task.resume)
        else:
            self._selector.modify(connection, event, task.resume)
        task.event = event

    def _pause_accepting(self):
        """Wait for files to be closed, instead of retrying in a busy loop."""
        if not self._short_of_files:
            self._short_of_files = True
            self.log.say("too many open files: new connections have to wait")
        if not self.stopping:
            self._listen(False)
            self.call_later(ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self):
        if not self.stopping:
            self._listen(True)

    def _listen(self, wanted):
        """Look for new connections, or not."""
        if wanted == self._is_listening:
            return
        for place, listener in self.listeners.items():
            if wanted:
                self._watch_listener(place)
            else:
                self._selector.unregister(listener)
        self._is_listening = wanted

    def _watch_listener(self, place):
        listener = self.listeners[place]
        self._selector.register(
            listener, READ, functools.partial(self.accept_requests, listener))


class Task:
    """An unfinished connection in the server's table: handler, generator, what it waits for."""

    __slots__ = ("handler", "generator", "resume", "event", "deadline")

    def __init__(self, handler, generator, resume):
        self.handler = handler
        self.generator = generator
        self.resume = resume
        self.event = NOTHING
        self.deadline = FOREVER


class Place(NamedTuple):
    """Where to listen: a host and a port; [::] may be for IPv6 only, or for IPv4 as well."""

    host: str
    port: int
    is_ipv6_only: bool

    def bind(self) -> socket.socket:
        """Bind a socket to this place. Raises OSError, which says what failed, and why.

        Without looking up our own name, as HTTPServer does: that takes 10 s if DNS is down.
        """
        listener = socket.socket(family_of(self.host), socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # for its connections
            if self.host in SERVICE_ADDRESSES:  # it may go from lo, and come back, at any time
                listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            if self.is_ipv6_only:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with self.explained():
                listener.bind((self.host, self.port))
        except OSError:
            listener.close()
            raise
        return listener

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Have an OSError say where we cannot listen, why, and what can be done."""
        try:
            yield
        except (OSError, UnicodeError) as error:
            code = getattr(error, "errno", None) or errno.EINVAL
            reason = explanation_of(error)
            if code == errno.EADDRINUSE:
                reason += another_port(self.host, self.port)
            raise OSError(
                code, "cannot listen on %s port %d: %s" % (self.host, self.port, reason))


def places_of(addresses: List[Tuple[str, int]]) -> List[Place]:
    """Return the places of (host, port)s; beside IPv4 ones with its port, [::] is for IPv6 only."""
    ports = {port for host, port in addresses if family_of(host) == socket.AF_INET}
    return [Place(host, port, family_of(host) == socket.AF_INET6 and port in ports)
            for host, port in addresses]


def family_of(host: str) -> int:
    """Tell an IPv6 address from an IPv4 one, or a name."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def another_port(host: str, port: int) -> str:
    """Say what to type where a port is taken."""
    other = port + 1 if port < 65535 else 8000
    return "; to use another: fake_metadata.py %s:%d (on a box: PORT=%d in %s); %s" % (
        "[%s]" % host if ":" in host else host, other, other, "/etc/default/fake-metadata",
        "to see what uses it: ss -ltnp sport = :%d" % port)


def plain_address(address: tuple) -> str:
    """Return the host of a socket's address; an IPv4 one of an IPv6 socket as IPv4."""
    host = address[0]
    return host[len("::ffff:"):] if host.startswith("::ffff:") else host


def is_loopback(host: str) -> bool:
    """Tell whether a numeric address is one of loopback."""
    return host.startswith("127.") or host == "::1"


def is_own(host: str) -> bool:
    """Tell whether a numeric address is this machine's: then the kernel reaches it from itself."""
    if is_loopback(host):
        return True
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as nobody:
        try:
            nobody.connect((host, SERVICE_PORT))  # of a datagram socket: nothing is sent
        except OSError:
            return False
        return nobody.getsockname()[0] == host


class ClientUsers:
    """Asks the kernel which Unix user is at the other end of a connection from this box.

    By sock_diag(7), which answers any user, and at once. The netlink socket is open from the first
    question on, until `close`. Whatever goes wrong, the user is unknown: never guessed.
    """

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._socket = None
        self._numbers = itertools.count(1)
        self._sees_all_users = not is_in_user_namespace()
        self._name = functools.lru_cache(maxsize=MAX_USER_NAMES)(self._look_up)

    def user_of(self, connection: socket.socket, client: tuple) -> Optional[str]:
        """Return the user who made the socket of a client: name_of_user. None if unknown.

        `client` is the address of that socket.
        """
        try:
            uid = self._ask(connection, client)
        except (OSError, ValueError, struct.error):
            return None
        if uid is None or (uid == OVERFLOW_UID and not self._sees_all_users):
            return None
        return self._name(uid, self._clock() // NAME_SECONDS)

    def close(self) -> None:
        """Close the netlink socket."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def _ask(self, connection, client):
        """Ask for the socket of a client, whose local end is our remote end."""
        wanted = connection_id(client, *original_destination(connection, client))
        number = next(self._numbers) & 0xffffffff
        if not self._socket:
            self._socket = open_diagnosis()
        self._socket.send(diagnosis_request(number, *wanted, scope_of(client)))
        uid = diagnosed_user(self._answer(number), wanted)
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) not in CONNECTED:
            return None  # the client has gone, and another may have its port by now
        return uid

    def _answer(self, number):
        """Return the answer to a question; one to a former question may still be there."""
        while True:
            answer, (sender, _) = self._socket.recvfrom(DIAGNOSIS_BYTES)
            if sender == 0 and number_of(answer) == number:  # 0: the kernel
                return answer

    @staticmethod
    def _look_up(uid, moment):
        return name_of_user(uid)


# What TCP_INFO begins with while a client is there: ESTABLISHED, and CLOSE_WAIT (it has sent all).
CONNECTED = (ESTABLISHED, b"\x08")
SYN_SENT = 2  # a state of TCP, too
IPV4_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96

# sock_diag(7): nlmsghdr (length, type, flags, sequence, port), inet_diag_req_v2 (family, protocol,
# states), inet_diag_sockid (ports, addresses, interface, cookie); the end of inet_diag_msg.
NETLINK_HEAD = struct.Struct("=IHHII")
DIAGNOSIS_HEAD = struct.Struct("=BBxxI")
DIAGNOSIS_PORTS = struct.Struct("!HH")
DIAGNOSIS_ADDRESSES = struct.Struct("=16s16sI8s")
DIAGNOSIS = struct.Struct("=BBxx4s16s16s12x12xII")  # family, state, id; user, inode


def open_diagnosis() -> socket.socket:
    """Open a netlink socket for questions about sockets. Raises OSError where there is none."""
    diagnosis = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
    diagnosis.setblocking(False)
    return diagnosis


def original_destination(connection: socket.socket, client: tuple) -> Tuple[bytes, int]:
    """Return address and port that a client has connected to: those before REDIRECT or DNAT."""
    try:
        if ":" in plain_address(client):
            data = connection.getsockopt(socket.IPPROTO_IPV6, ORIGINAL_DST, 28)
            port, address = struct.unpack("!2xH4x16s4x", data)
        else:
            data = connection.getsockopt(socket.IPPROTO_IP, ORIGINAL_DST, 16)
            port, address = struct.unpack("!2xH4s8x", data)
        return address, port
    except OSError:  # the kernel tracks no connections
        here = connection.getsockname()
        return packed_address(here), here[1]


def connection_id(client: tuple, address: bytes, port: int) -> Tuple[bytes, bytes, bytes]:
    """Return ports and addresses of a connection, as its client sees it, as bytes."""
    return DIAGNOSIS_PORTS.pack(client[1], port), packed_address(client), address


def packed_address(address: tuple) -> bytes:
    """Return the host of a socket's address as bytes."""
    host = plain_address(address)
    return socket.inet_pton(family_of(host), host.partition("%")[0])


def scope_of(address: tuple) -> int:
    """Return the interface of a link-local address; 0 for any other."""
    return address[3] if len(address) > 3 else 0


def diagnosis_request(
    number: int, ports: bytes, client: bytes, service: bytes, scope: int
) -> bytes:
    """Write the question for the one TCP socket that has these ports and addresses."""
    family = socket.AF_INET if len(client) == 4 else socket.AF_INET6
    body = b"".join((
        DIAGNOSIS_HEAD.pack(family, socket.IPPROTO_TCP, 0xffffffff), ports,
        DIAGNOSIS_ADDRESSES.pack(client, service, scope, b"\xff" * 8)))  # no cookie
    return NETLINK_HEAD.pack(
        NETLINK_HEAD.size + len(body), SOCK_DIAG_BY_FAMILY, 1, number, 0) + body  # NLM_F_REQUEST


def number_of(answer: bytes) -> int:
    """Return the sequence number of a netlink message."""
    return NETLINK_HEAD.unpack_from(answer)[3]


def diagnosed_user(answer: bytes, wanted: Tuple[bytes, bytes, bytes]) -> Optional[int]:
    """Read the number of the user from an answer; None if it is about no socket, or another one.

    Where there is no such connection the kernel may answer with who listens at the port of the
    client. A socket that no process holds (TIME_WAIT, or closed with something to send) has no
    inode, and 0 in the place of its user.
    """
    kind = NETLINK_HEAD.unpack_from(answer)[1]
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    family, state, ports, client, service, uid, inode = DIAGNOSIS.unpack_from(
        answer, NETLINK_HEAD.size)
    found = (ports, unmapped(family, client), unmapped(family, service))
    if found != wanted or not inode or state == SYN_SENT:
        return None
    return uid


def unmapped(family: int, address: bytes) -> bytes:
    """Return an address of a netlink message: an IPv4 one in four bytes, of an IPv6 socket too."""
    if family == socket.AF_INET:
        return address[:4]
    return address[12:] if address.startswith(IPV4_MAPPED) else address


def is_in_user_namespace() -> bool:
    """Tell whether there may be users on this box that have no number here."""
    return read_line("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"])


USER_NAME = re.compile(r"(?![0-9]+$)[\w.@+-]{1,64}[$]?", re.ASCII)


def name_of_user(uid: int) -> str:
    """Return the name of a user; or the number, where there is no name that a log can have.

    A name like a number would be another user's number.
    """
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OSError):
        name = ""
    return name if USER_NAME.fullmatch(name) else str(uid)


class AddressWatch:
    """Checks that addresses of this box lead to this service; says what is gone or back.

    Somebody flushes the packet filter, NetworkManager takes addresses off lo, another tool puts its
    rule in front of ours: nobody tells us. So a connection from here to port 80 of each address
    must arrive here. It is only tried while the address is this box's own: elsewhere it may be
    that of a real metadata service.
    """

    def __init__(self, server: Server, say: Callable[[str], None]):
        self._server = server
        self._say = say
        self._probes = []
        self._trouble = {}  # address -> what the last check found
        self._told = {}  # address -> what was logged last

    def look(self, addresses: Callable[[], List[str]]) -> None:
        """Check the addresses that a function returns, now and at intervals."""
        self._server.call_later(WATCH_SECONDS, functools.partial(self.look, addresses))
        if not self._server.is_full():  # or a connection of ours would have to wait, too
            self._probes = [Probe(address) for address in addresses()]
            self._server.call_later(PROBE_SECONDS, self._conclude)

    def close(self) -> None:
        """Close what is under way."""
        for probe in self._probes:
            probe.close()

    def _conclude(self):
        """Report what two checks in a row have found, unless it was reported last."""
        peers = self._server.peers()
        for probe in self._probes:
            address, trouble = probe.address, probe.trouble(peers)
            was, self._trouble[address] = self._trouble.get(address, ""), trouble
            if trouble == was and trouble != self._told.get(address, ""):
                self._told[address] = trouble
                self._say("%s %s" % (address, trouble or "leads to this service again"))
        self.close()


class Probe:
    """A connection from here to port 80 of one of our addresses, to see where it arrives."""

    def __init__(self, address: str):
        self.address = address
        self._is_own = is_own(address)
        self._socket = socket.socket(family_of(address), socket.SOCK_STREAM)
        self._socket.setblocking(False)
        if self._is_own:
            with contextlib.suppress(OSError):  # such as that it takes a moment
                self._socket.connect((address, SERVICE_PORT))

    def trouble(self, peers: Set[Tuple[str, int]]) -> str:
        """Say why the connection has not arrived here; "" if it has."""
        if not self._is_own:
            return "is no longer an address of this box; remedy: service fake-metadata reload"
        if self._socket.getsockname()[:2] not in peers:
            return ("no longer leads to this service: its redirect is gone, or another rule is in "
                    "front of it; remedy: service fake-metadata reload; if that does not help: "
                    "service fake-metadata check")
        return ""

    def close(self) -> None:
        """Close it, arrived or not."""
        self._socket.close()


def connection_limit() -> int:
    """Compute how many connections the limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, soft - RESERVED_FILES))


def raise_file_limit() -> None:
    """Raise a low limit of open files, so that there may be as many connections as we can bear."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------- log -------------------------

class Log:
    """The log: lines are gathered, and written once for each round of the server.

    That makes a request cost 14 microseconds; with the logging module it would be 43. A log that
    cannot be written never stops the service: lost lines are counted, and the count is logged as
    soon as a line can be.

        2026-12-01T08:00:00Z 127.0.0.1 "GET /latest/ HTTP/1.1" 200 27 0.1ms "curl/8.5.0"
        2026-12-01T08:00:00Z fake-metadata: listening on http://127.0.0.1:8000/

    Time, peer, request line, status, bytes, duration, user agent. With log-clients = yes the
    version of IMDS follows, and the Unix user of a client that is on this machine ("?"
    if it had closed its connection):

        ... 200 27 0.1ms "curl/8.5.0" v1 user=ci

    What is refused or left unanswered, or what a fault has struck, has the reason at the end:

        ... 503 32 0.1ms "curl/8.5.0" v1 user=ci fault outage: 503

    Double quotes stand around request line and user agent, and nowhere else: those of a client are
    escaped. A user is one word without quotes. No reason begins with v1, v2 or user=. LOGGED reads
    it.
    """

    def __init__(self, path="", clock=time.time):
        self._clock = clock
        self._second, self._stamp = None, ""
        self._path = ""
        self._file = None  # None: stderr
        self._lines = []
        self._gathered = 0  # characters in them
        self._refusals = {}  # peer -> how many there were in this second
        self._cut = b""  # the rest of a line of which a part is in the file already
        self._lost = 0  # lines
        self.reopen(path)

    def request(self, peer, request, status, size, seconds, reason, limit=MAX_LOGGED_LINE,
                client=None):
        """Add the line of a request; `reason` says why it was refused, if it was.

        `limit` is that of its texts, in characters. `client`, if given, is called for words
        about the client, if there is a line.
        """
        if (status >= 400 or not status) and self._is_one_too_many(peer):
            return
        line, agent = request.for_log(limit)
        if reason:
            reason = " " + reason.replace('"', "'")
        if client:
            reason = " %s%s" % (client(), reason)
        self._add('%s "%s" %s %s %.1fms "%s"%s\n' % (
            peer, line, status, size, seconds * 1000, agent, reason))

    def refuse(self, peer: str, words: str) -> None:
        """Add a line about a client that was turned away before it could ask."""
        if not self._is_one_too_many(peer):
            self.say("%s: %s" % (peer, words))

    def say(self, words: str) -> None:
        """Add a line that is not about a request."""
        self._add("fake-metadata: %s\n" % printable(words))

    def sum_refusals(self) -> None:
        """Say how many refusals of each peer were not logged; to be called each second."""
        refusals, self._refusals = self._refusals, {}
        for peer, count in refusals.items():
            if count > MAX_REFUSALS:
                self.say("%s: %d more requests refused" % (peer, count - MAX_REFUSALS))

    def _add(self, line):
        self._lines.append(line)
        self._gathered += len(line)
        if self._gathered > MAX_GATHERED:
            self.flush()

    def _is_one_too_many(self, peer):
        """Count the refusals of a peer in this second."""
        self._refusals[peer] = self._refusals.get(peer, 0) + 1
        return self._refusals[peer] > MAX_REFUSALS

    def reopen(self, path: str) -> None:
        """Open the file anew; if that fails, go on with the old one and say so."""
        self.flush()
        try:
            file = open_log(path) if path else None
        except OSError as error:
            trouble = "cannot open the log %s: %s; logging continues to %s" % (
                path, error.strerror, self._path or "stderr")
            self.say(trouble)
            if self._file is not None:
                warn(trouble)
        else:
            self._use(file, path)
        self.flush()

    def flush(self) -> None:
        """Write the lines gathered, without waiting for a reader."""
        if not self._lines:
            return
        self._look_at_clock()
        text = "".join([self._stamp + line for line in self._lines])
        data = self._cut + text.encode("utf-8", "replace")
        self._lines, self._gathered = [], 0
        written = self._write(data)
        if written < len(data):
            self._lose(data, written)
        else:
            self._cut = b""
            self._say_what_was_lost()

    def close(self) -> None:
        """Write the lines gathered and close the file."""
        self.sum_refusals()
        self.flush()
        self._use(None, "")

    def _use(self, file, path):
        former, self._file, self._path = self._file, file, path
        if former is not None:
            os.close(former)
        if self._cut:  # the new file must not begin with half a line
            self._cut = b""
            self._lost += 1

    def _write(self, data):
        """Write as much as possible without waiting; return the number of bytes."""
        written = 0
        try:
            while written < len(data):
                if self._file is not None:
                    written += os.write(self._file, data[written:])
                elif stderr_is_ready():
                    written += os.write(2, data[written:written + PIPE_BYTES])
                else:
                    break
        except OSError:  # the disk is full, the reader is gone
            pass
        return written

    def _lose(self, data, written):
        """Count lines that could not be written; keep the rest of one that was begun."""
        rest = data[written:]
        is_begun = data[written - 1:written] != b"\n" if written else bool(self._cut)
        self._cut = rest[:rest.index(b"\n") + 1] if is_begun else b""
        self._lost += rest.count(b"\n") - bool(self._cut)

    def _say_what_was_lost(self):
        """Log how many lines were lost; if that line is lost too, keep their number for later."""
        if self._lost:
            lost, self._lost = self._lost, 0
            self.say("%d lines were lost while the log could not be written" % lost)
            self.flush()
            if self._lost:
                self._lost = lost

    def _look_at_clock(self):
        """Take the time of a round; the stamp of its lines is made once a second."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._stamp = second, utc(second) + " "


def open_log(path: str) -> int:
    """Open a log to append to it, a pipe without waiting for its reader."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    return os.open(path, flags, 0o640)


def warn(words: str) -> None:
    """Write a line to stderr, unless nobody reads it."""
    try:
        if stderr_is_ready():
            os.write(2, ("fake-metadata: %s\n" % words).encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def stderr_is_ready() -> bool:
    """Tell whether stderr takes bytes now; a pipe or a terminal that nobody reads does not."""
    return bool(select.select((), (2,), (), 0)[1])


def escaped(text: Union[str, bytes], limit: int) -> str:
    """Escape a client's text for the log, up to a limit; what is left out is counted.

    Only printable ASCII is left, without quotes, backslashes or session tokens.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    begin = re.sub(TOKEN_IN_TEXT, "(token)", text[:limit + TOKEN_LENGTH])
    for length in (limit, limit // 4):  # less of a text that is full of what has to be escaped
        shown = re.sub(r"[^ !#-\[\]-~]", escape, begin[:length])
        if len(shown) <= limit:
            break
    if len(text) > length:
        shown += " (%d more)" % (len(text) - length)
    return shown


def escape(match: Any) -> str:
    """Write a character as \\x and two digits."""
    return "\\x%02x" % ord(match.group())


def printable(text: str) -> str:
    """Replace characters that are not printable: they could move the cursor of a terminal."""
    for char in set(text):
        if not char.isprintable():
            text = text.replace(char, "?")
    return text


# ---------------------------------------------------------------- configuration ---------------
#
# Parsers, SETTINGS (the table of all sections and keys), and how a file is read. A parser takes a
# text and returns its value, or raises ValueError with what would be right.

Parser = Callable[[str], Any]


def choice(*words: str) -> Parser:
    """Make a parser that takes one of these words."""
    def parse(text):
        if text not in words:
            raise ValueError("not one of: %s" % ", ".join(words))
        return text
    return parse


def whole_number(lowest: int, highest: int) -> Parser:
    """Make a parser of a whole number, without a sign."""
    def parse(text):
        if not re.fullmatch("[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
            raise ValueError("not a whole number from %d to %d" % (lowest, highest))
        return int(text)
    return parse


def matching(pattern: str, example: str) -> Parser:
    """Make a parser of what matches a pattern; its error hides the value, which may be secret."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(text):
        if not compiled.fullmatch(text):
            raise ValueError("invalid value; write it like " + example)
        return text
    return parse


def comma_separated(parse_item: Parser) -> Parser:
    """Make a parser for a list; `parse_item` parses each item: a, b, "an item, with a comma"."""
    def parse(text):
        try:
            items = next(csv.reader([text.replace("\n", " ")], skipinitialspace=True, strict=True))
        except csv.Error:
            raise ValueError('misplaced quotes; write it like: a, "b, c", d')
        return [parse_item(item.strip()) for item in items]
    return parse


def or_empty(parse_text: Parser, nothing: Any = "") -> Parser:
    """Make a parser that takes an empty text too: it leaves out a fact that would be derived."""
    def parse(text):
        return parse_text(text) if text else nothing
    return parse


def resource_id(prefix: str) -> Parser:
    """Make a parser of the id of an EC2 resource, short or long."""
    return matching(prefix + "-([0-9a-f]{8}|[0-9a-f]{17})", prefix + "-0123456789abcdef0")


def ip_address(make: Callable, kind: str, example: str) -> Parser:
    """Make a parser of an address, which returns its usual form."""
    def parse(text):
        try:
            if "%" in text:  # fe80::1%eth0, which Python takes since 3.9
                raise ValueError("with a zone")
            return str(make(text))
        except ValueError:
            raise ValueError("not an %s address; write it like %s" % (kind, example))
    return parse


def ip_block(make: Callable, example: str) -> Parser:
    """Make a parser of a block of addresses, which returns its usual form.

    That of Nitro, 2001:db8:0:0:0:0:0:0/56, is taken too.
    """
    def parse(text):
        try:
            block = make(text, strict=False)
        except ValueError:
            raise ValueError("not a CIDR block; write it like %s" % example)
        address, _, bits = text.partition("/")
        if bits != str(block.prefixlen) or make(address).network_address != block.network_address:
            raise ValueError("not a CIDR block; did you mean %s?" % block)
        return str(block)
    return parse


def source_block(text: str) -> Any:
    """Return an address, or a block of addresses, as a network."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("not an address or block; write it like 10.0.3.7 or 172.18.0.0/16")


def ssh_keys(text: str) -> List[str]:
    """Take public keys, one a line."""
    return [one_ssh_key(line.strip()) for line in text.splitlines()]


def volume(kind: str) -> Parser:
    """Make a parser of "sdf" or "ebs2=sdf", which returns (number or "", device)."""
    form = re.compile(r"(?:%s([0-9]{1,2})=)?(\w+)" % kind, re.ASCII)

    def parse(text):
        match = form.fullmatch(text)
        if not match:
            raise ValueError("not a device; write it like sdf or %s2=sdf" % kind)
        return match.group(1) or "", match.group(2)
    return parse


def one_line(text: str) -> str:
    """Take a text of one line."""
    if not text or not text.isprintable():
        raise ValueError("not one line of printable characters")
    return text


def one_path(text: str) -> str:
    """Take a full path of the tree."""
    is_taken = canonical_path(text) in (*LISTING_ROWS, TOKEN_PATH)
    if not text.startswith("/") or not METADATA_PATH.fullmatch(text) or is_taken:
        raise ValueError(
            "not a path for credentials; write it like /latest/meta-data/my/credentials")
    return canonical_path(text)


def fault_name(text: str) -> str:
    """Take the name of a fault, which the log shows."""
    if len(text) > 64 or not text.isprintable():
        raise ValueError("not the name of a fault; use up to 64 printable characters")
    return text


def metadata_key(text: str) -> str:
    """Take a key of [metadata], and return its path."""
    if not METADATA_PATH.fullmatch(text):
        raise ValueError("not a path; write one below meta-data/, such as placement/host-id, or "
                         "one from the root, such as /latest/dynamic/x")
    if text.partition("/")[0] in (*VERSIONS, "meta-data", "dynamic"):
        raise ValueError("would be below meta-data/; write a path with a leading slash, such as "
                         "/latest/dynamic/x")
    path = own_path(text)
    if path in ("/", "/latest"):
        raise ValueError("is a listing that cannot be replaced; write a path below it")
    if path == TOKEN_PATH or CONTAINER_PATH.fullmatch(path):
        raise ValueError("session tokens and container credentials are served there; "
                         "write another path")
    return path


def tag_key(text: str) -> str:
    """Take the key of a tag."""
    if not TAG_KEY.fullmatch(text):
        raise ValueError("not a tag key; use up to 128 letters, digits and +-=.,_:@#")
    return text


def base64_bytes(text: str) -> bytes:
    """Decode base64, of any number of lines."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ValueError("not base64; write what `base64 FILE` prints, with further lines indented")


DURATION_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> float:
    """Convert "1500ms", "90s", "5m", "6h" or "2d" to seconds."""
    match = re.fullmatch("([0-9]{1,9})(%s)" % "|".join(DURATION_UNITS), text)
    if not match:
        raise ValueError("not a duration; write it like 1500ms, 90s, 5m, 6h or 2d")
    return int(match.group(1)) * DURATION_UNITS[match.group(2)]


def lifetime(text: str) -> float:
    """Convert a lifetime of credentials, from a second to a week, to seconds."""
    seconds = duration(text)
    if not 1 <= seconds <= 7 * 86400:
        raise ValueError("%s is out of range; write 1s to 7d" % text)
    return seconds


def when(text: str) -> Moment:
    """Parse "+90s" or a time into a Moment (see the section on events)."""
    if text.startswith("+"):
        seconds = duration(text[1:])
        return lambda start: start + seconds
    try:
        fixed = timestamp(text)
    except ValueError:
        raise ValueError("not a time; write +90s (counted from when the line is first read) "
                         "or 2026-12-01T08:00:00Z")
    return lambda start: fixed


BIND_FORMS = (
    re.compile(r"\[(?P<host>[\w.%:-]+)\](:(?P<port>[0-9]{0,5}))?", re.ASCII),  # [IPV6]:PORT
    re.compile(r"(?P<host>[\w.%-]+)(:(?P<port>[0-9]{0,5}))?", re.ASCII),  # HOST:PORT
    re.compile(r"(?P<host>[\w.%-]*:[\w.%-]*:[\w.%:-]*)(?P<port>)", re.ASCII),  # IPV6
)


def bind_address(text: str) -> Tuple[str, int]:
    """Return (host, port) of HOST, HOST:PORT, ::1, [::1] or [::1]:PORT."""
    if re.fullmatch(":?[0-9]{1,5}", text):
        raise ValueError("%s is only a port; write 127.0.0.1:%s" % (text, text.lstrip(":")))
    for form in BIND_FORMS:
        match = form.fullmatch(text)
        if match:
            host, port = match["host"], int(match["port"] or DEFAULT_BIND[1])
            if ":" in host:
                one_ipv6(host.partition("%")[0])
            if port <= 65535:
                return host, port
    raise ValueError("not an address; write HOST, HOST:PORT or [IPV6]:PORT")


def bind_addresses(text: str) -> List[Tuple[str, int]]:
    """Return (host, port) of each address of a list."""
    addresses = comma_separated(bind_address)(text) or [bind_address(text)]
    return list(dict.fromkeys(addresses))


def probability(text: str) -> float:
    """Return a number above 0 and up to 1."""
    if not re.fullmatch(r"0?\.[0-9]+|1(\.0+)?", text) or not float(text):
        raise ValueError("not a probability; write a number above 0 and up to 1, such as 0.2")
    return float(text)


def spot_interruption(text: str) -> Tuple[Moment, str, Optional[Moment]]:
    """Return (moment, action, moment or None) of "WHEN terminate [WHEN]".

    The notice appears at the first WHEN, and names the second.
    """
    at, action, *rest = words_of(text, (2, 3), "+90s terminate")
    return when(at), choice("terminate", "stop", "hibernate")(action), first_moment(rest)


def rebalance_recommendation(text: str) -> Tuple[Moment, Moment]:
    """Return the moments of "WHEN [WHEN]": when it appears, and the noticeTime in it."""
    at, *rest = words_of(text, (1, 2), "+60s")
    return when(at), first_moment(rest) or when(at)


def first_moment(words: List[str]) -> Optional[Moment]:
    """Parse the first of some words, None if there is none."""
    return when(words[0]) if words else None


def scheduled_maintenance(text: str) -> List[ScheduledEvent]:
    """Return an event for each "WHEN CODE FROM [TO] [completed|canceled WHEN]".

    It is completed at its end, unless it says otherwise; one without an end goes on.
    """
    events = []
    for item in text.split(","):
        appears, code, not_before, *rest = words_of(
            item, (3, 4, 5, 6),
            "+30s system-reboot 2026-12-01T08:00:00Z 2026-12-01T10:00:00Z canceled +90s")
        not_after = None
        if len(rest) in (1, 3):
            not_after = when(rest[0])
        end_state, ends = "completed", not_after or never
        if len(rest) > 1:
            end_state, ends = choice("completed", "canceled")(rest[-2]), when(rest[-1])
        events.append(ScheduledEvent(
            when(appears), choice(*MAINTENANCE_CODES)(code), when(not_before), not_after,
            end_state, ends))
    return events


def lifecycle_states(text: str) -> List[Tuple[Moment, str]]:
    """Return [(moment, state)] of "[WHEN] STATE, WHEN STATE, ..."."""
    states = []
    for item in text.split(","):
        if len(item.split()) == 1:
            item = "+0s " + item
        at, state = words_of(item, (2,), "InService, +120s Terminated")
        states.append((when(at), choice(*LIFECYCLE_STATES)(state)))
    return states


def words_of(text: str, counts: Iterable[int], example: str) -> List[str]:
    """Split a text into words; `counts` tells how many there may be."""
    words = text.split()
    if len(words) not in counts:
        raise ValueError("invalid value; write it like: %s" % example)
    return words


# Action of a fault -> parser of the word after it; None: there is none. If a line has several,
# this is the order in which they take effect.
FAULT_ACTIONS = {
    "delay": duration,
    "reset": None,
    "no-answer": None,
    "status": whole_number(400, 599),
    "refuse-token": None,
    "code": matching("[A-Za-z][A-Za-z0-9.]*", "AssumeRoleUnauthorizedAccess"),
    "expired": None,
    "empty": None,
    "truncate": whole_number(0, 999999999),
}

# When a fault applies, and how often.
FAULT_LIMITS = {
    "from": when,
    "for": duration,
    "every": duration,
    "times": whole_number(1, 999999999),
    "probability": probability,
}


def whose_name(text: str) -> str:
    """Return the NAME of an [instance NAME]."""
    if not text:
        raise ValueError("no name; write the NAME of an [instance NAME]")
    return text


def fault_rule(text: str) -> dict:
    """Return {"path": PATH, "actions": {ACTION: value}, LIMIT: value} of a line of [faults].

    A word with blanks, such as a message, stands in quotes. The value of "code" is (code, message).
    """
    path, *words = shlex.split(text) or [""]
    if not path.startswith("/"):
        raise ValueError("must begin with a path, such as /latest/meta-data/*")
    known = {**FAULT_ACTIONS, **FAULT_LIMITS, "message": one_line, "instance": whose_name}
    values, rest = {}, iter(words)
    for word in rest:
        if word in values:
            raise ValueError("%s is set twice; write it once" % word)
        if word not in known:
            raise ValueError("unknown word %s; use one of: %s" % (
                shown_key(word, "(hidden)"), ", ".join(known)))
        parse = known[word]
        values[word] = value_of_word(word, parse, next(rest, "")) if parse else True
    message = values.pop("message", "")
    if "code" in values:
        values["code"] = values["code"], message
    elif message:
        raise ValueError('message without a code; write it like: code Failed message "a text"')
    if "every" in values and values.get("for", FOREVER) >= values["every"]:
        raise ValueError("every needs a shorter for; write it like: every 60s for 5s")
    actions = {action: values.pop(action) for action in FAULT_ACTIONS if action in values}
    if not actions:
        raise ValueError("no action; write one of: %s" % ", ".join(FAULT_ACTIONS))
    return {"path": path, "actions": actions, **values}


def value_of_word(word: str, parse: Parser, text: str) -> Any:
    """Parse what follows a word of a fault; its error names the word."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError("%s: %s" % (word, error))


one_user = matching(r"[\w.@+-]+[$]?", "deploy")
one_host = matching(r"[\w:.-]*\w", "imds.example.com")
one_secret = matching(SECRET_FORM.pattern, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
one_host_name = matching(r"[\w.-]*\w\.?( [\w.-]*\w\.?)*", "ip-10-0-0-5.example.com")
one_ssh_key = matching(
    r"(ssh|ecdsa|sk)-\S+ [A-Za-z0-9+/=]+( .*)?", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA... name")
one_instance_profile = matching(
    r"(arn:[\w-]+:iam::[0-9]{12}:instance-profile/|/?)([!-.0-~]+/)*[\w+=,.@-]{1,128}",
    "my-profile, /my-path/my-profile or an ARN")
one_ipv4 = ip_address(ipaddress.IPv4Address, "IPv4", "10.0.0.5")
one_ipv6 = ip_address(ipaddress.IPv6Address, "IPv6", "2001:db8::5")
one_ipv4_block = ip_block(ipaddress.IPv4Network, "10.0.0.0/16")
one_ipv6_block = ip_block(ipaddress.IPv6Network, "2001:db8::/56")

# Keys of [instance] and [interface NAME] -> (parser, default). A default of None means that the
# fact is derived from others; an empty default, like an empty value, that the fact is absent.
INTERFACE_SETTINGS = {
    "mac": (matching("([0-9a-f]{2}:){5}[0-9a-f]{2}", "0e:ff:d5:40:fe:7d"), None),
    "interface-id": (resource_id("eni"), None),
    "local-ipv4": (or_empty(comma_separated(one_ipv4), []), None),
    "local-hostname": (or_empty(one_host_name), None),
    "public-ipv4": (or_empty(comma_separated(one_ipv4), []), None),
    "public-hostname": (or_empty(one_host_name), None),
    "ipv6": (comma_separated(one_ipv6), []),
    "security-groups": (comma_separated(one_line), None),
    "security-group-ids": (comma_separated(resource_id("sg")), None),
    "subnet-id": (resource_id("subnet"), None),
    "subnet-ipv4-cidr-block": (or_empty(one_ipv4_block), None),
    "subnet-ipv6-cidr-blocks": (or_empty(comma_separated(one_ipv6_block), []), None),
    "vpc-id": (resource_id("vpc"), None),
    "vpc-ipv4-cidr-blocks": (or_empty(comma_separated(one_ipv4_block), []), None),
    "vpc-ipv6-cidr-blocks": (or_empty(comma_separated(one_ipv6_block), []), None),
    "ipv4-prefix": (comma_separated(one_ipv4_block), []),
    "ipv6-prefix": (comma_separated(one_ipv6_block), []),
    "network-card": (whole_number(0, 64), ""),
}

# Keys of [instance] and [instance NAME].
INSTANCE_SETTINGS = {
    "instance-id": (resource_id("i"), None),
    "instance-type": (matching(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", "t3.micro"), "t3.micro"),
    "instance-life-cycle":
        (choice("on-demand", "spot", "scheduled", "capacity-block",
                "interruptible-capacity-reservation"), None),
    "architecture": (choice("x86_64", "arm64", "i386", "x86_64_mac", "arm64_mac"), None),
    "system": (choice("nitro", "xen", "xen-on-nitro"), None),
    "ami-id": (resource_id("ami"), None),
    "reservation-id": (resource_id("r"), None),
    "account-id": (matching("[0-9]{12}", "123456789012"), "123456789012"),
    "availability-zone": (matching(ZONE.pattern, "us-east-1a"), "us-east-1a"),
    "availability-zone-id":
        (matching(r"[a-z0-9]+(-[a-z]+[0-9])?(-[a-z]+)?-(az|wlz)[0-9]+", "use1-az1"), None),
    "launch-time": (timestamp, None),
    "key-name": (one_line, ""),
    "public-key": (or_empty(ssh_keys, []), None),
    "instance-profile": (one_instance_profile, ""),
    "instance-profile-id": (matching("AIPA[A-Z0-9]{12,28}", "AIPAIOSFODNN7EXAMPLEAB"), ""),
    "kernel-id": (resource_id("aki"), ""),
    "ramdisk-id": (resource_id("ari"), ""),
    "product-codes": (comma_separated(one_line), []),
    "billing-products": (comma_separated(one_line), []),
    "root-device": (matching(r"/dev/\w+", "/dev/xvda"), None),
    "root-device-type": (choice("ebs", "instance-store"), "ebs"),
    "ebs-volumes": (comma_separated(volume("ebs")), []),
    "ephemeral-volumes": (comma_separated(volume("ephemeral")), []),
    **INTERFACE_SETTINGS,
}

# Keys of [credentials] and [role NAME].
SOURCE_SETTINGS = {
    "source": (choice(*SOURCES), "generate"),
    "lifetime": (lifetime, 6 * 3600),
    "access-key-id": (matching(r"[\w-]{3,128}", "ASIAIOSFODNN7EXAMPLE"), ""),
    "secret-access-key": (one_secret, ""),
    "session-token": (one_secret, ""),
    "profile": (one_line, "default"),
    "file": (one_line, ""),
    "command": (one_line, ""),
    "timeout": (duration, 30),
}

# Keys of [container] and [role NAME].
AUTHORIZATION_SETTINGS = {
    "authorization-token": (matching("[ -~]+", "a-secret-of-your-own"), ""),
    "authorization-token-file": (one_line, ""),
}

# Keys of [user-data] and [user-data NAME].
USER_DATA_SETTINGS = {
    "file": (one_line, ""),
    "text": (str, ""),
    "base64": (base64_bytes, b""),
}

# Keys of [events] and [events NAME].
EVENT_SETTINGS = {
    "spot-interruption": (spot_interruption, ""),
    "rebalance-recommendation": (rebalance_recommendation, ""),
    "scheduled-maintenance": (scheduled_maintenance, []),
    "target-lifecycle-state": (lifecycle_states, []),
}

# Section -> key -> (parser, default). "*" stands for any key. A section with NAME may appear
# several times, each time with another name.
SETTINGS = {
    "server": {
        "bind": (bind_addresses, [DEFAULT_BIND]),
        "addresses": (comma_separated(choice(*SERVICE_ADDRESSES)), []),
        "log": (one_line, ""),
        "allowed-hosts": (comma_separated(one_host), []),
        "error-bodies": (choice("json", "ec2"), "json"),
        "log-clients": (choice("yes", "no"), "no"),
    },
    "metadata-options": {
        "http-tokens": (choice("optional", "required"), "optional"),
        "http-endpoint": (choice("enabled", "disabled"), "enabled"),
        "http-put-response-hop-limit": (whole_number(1, 64), 2),
        "instance-metadata-tags": (choice("enabled", "disabled"), "disabled"),
        "http-protocol-ipv6": (choice("enabled", "disabled"), None),
    },
    "instance": INSTANCE_SETTINGS,
    "instance NAME": {
        "from": (comma_separated(source_block), []),
        "each": (choice("yes", "no"), "no"),
        **INSTANCE_SETTINGS,
    },
    "interface NAME": {
        "device-number": (whole_number(0, 64), None),
        "instance": (str, ""),
        **INTERFACE_SETTINGS,
    },
    "credentials": {
        "role": (or_empty(matching(ROLE_NAME.pattern, "BaseIAMRole")), "BaseIAMRole"),
        "extended": (choice("yes", "no"), "no"),
        **SOURCE_SETTINGS,
    },
    "role NAME": {
        "users": (comma_separated(one_user), []),
        "from": (comma_separated(source_block), []),
        "path": (comma_separated(one_path), []),
        "form": (choice(*ROLE_FORMS), "instance"),
        **AUTHORIZATION_SETTINGS,
        **SOURCE_SETTINGS,
    },
    "instance-identity": {
        "key": (one_line, ""),
        "certificate": (one_line, ""),
    },
    "container": AUTHORIZATION_SETTINGS,
    "tags": {"*": (str, "")},
    "tags NAME": {"*": (str, "")},
    "metadata": {"*": (str, "")},
    "metadata NAME": {"*": (str, "")},
    "user-data": USER_DATA_SETTINGS,
    "user-data NAME": USER_DATA_SETTINGS,
    "events": EVENT_SETTINGS,
    "events NAME": EVENT_SETTINGS,
    "faults": {"*": (fault_rule, None)},
}

TAG_KEY = re.compile(r"(?!\.{1,2}$|_index$)[a-zA-Z0-9+=.,_:@#-]{1,128}")
METADATA_PATH = re.compile(r"(?=[!-~]+$)(?!(.*/)?\.\.?(/|$))/?([^/%?#]+/)*[^/%?#]+/?")

# Section with any key -> the parser of its keys.
KEY_PARSERS = {"tags": tag_key, "tags NAME": tag_key, "metadata": metadata_key,
               "metadata NAME": metadata_key, "faults": fault_name}

# Keys of [instance] that an environment variable overrides.
VARIABLES = {
    "public-hostname": "EC2_LOCAL_HOSTNAME",
    "public-ipv4": "EC2_LOCAL_IPV4",
}

# Words that people know from elsewhere -> what to write instead.
OTHER_NAMES = {
    "region": "availability-zone = eu-central-1a, which sets the region",
    "zone": "availability-zone = eu-central-1a",
    "az": "availability-zone = eu-central-1a",
    "hostname": "local-hostname = ip-10-0-0-5.ec2.internal",
    "private-ip": "local-ipv4 = 10.0.0.5",
    "public-ip": "public-ipv4 = 203.0.113.25",
    "type": "instance-type = t3.micro",
    "image-id": "ami-id = ami-0123456789abcdef0",
    "iam-role": "role = NAME in [credentials]",
    "port": "bind = 127.0.0.1:8000 in [server]",
    "host": "bind = 127.0.0.1:8000 in [server]",
    "imdsv2": "http-tokens = required in [metadata-options]",
    "hop-limit": "http-put-response-hop-limit = 2 in [metadata-options]",
    "duration": "lifetime = 1h",
}

# Keys that [instance] had before 1.1 -> the path that each of them filled.
FORMER_KEYS = {
    "ami-launch-index": "ami-launch-index",
    "ami-manifest-path": "ami-manifest-path",
    "ancestor-ami-ids": "ancestor-ami-ids",
    "hibernation": "hibernation/configured",
    "host-id": "placement/host-id",
    "instance-action": "instance-action",
    "monitoring": "/latest/dynamic/fws/instance-monitoring",
    "partition-number": "placement/partition-number",
    "placement-group": "placement/group-name",
    "swap-device": "block-device-mapping/swap",
}


class Setting(NamedTuple):
    """One key of a configuration as it is written; or, without a key, the head of a section."""

    place: str  # FILE:LINE, or whatever it comes from
    section: str
    key: str
    text: str


class Configuration(dict):
    """{section: {key: value}}, defaults filled in; and how it was written, and where.

    A named section, such as "interface eth1", stands beside the fixed ones.
    """

    def __init__(self):
        super().__init__(
            (kind, default_settings(kind)) for kind in SETTINGS if not kind.endswith(" NAME"))
        self.texts = {}  # {section: {key: text}}, of keys that are written
        self.places = {}  # {(section, key): FILE:LINE}

    def take(self, setting: Setting) -> None:
        """Take a setting in the place of a former one. Raises ConfigError."""
        section, key, text = setting.section, setting.key, setting.text
        kind = kind_of(section)
        if kind in SETTINGS:
            self.setdefault(section, default_settings(kind))
        elif not key:  # one error for the section is enough
            raise ConfigError("unknown section" + nearest(section, SETTINGS), section)
        self.places[section, key] = setting.place
        if key and kind in SETTINGS:
            self[section][key] = checked_value(section, key, text, SETTINGS[kind])
            self.texts.setdefault(section, {})[key] = text

    def files_with_secrets(self) -> List[str]:
        """List the files, and other places, that keys or tokens come from."""
        return sorted({place.rpartition(":")[0] for (section, key), place in self.places.items()
                       if key in SECRET_KEYS and self.get(section, {}).get(key)})


def load_config(
    sources: Iterable[Any] = (),
    overrides: Iterable[str] = (),
    environ: Dict[str, str] = os.environ,
) -> Configuration:
    """Read and check a configuration; later sources win, key by key. Raises ConfigError.

    A source is a ConfigFile, ConfigText or ConfigMapping; an override, SECTION.KEY=VALUE, wins over
    all of them.
    """
    config = Configuration()
    with Mistakes(config.places) as mistakes:
        settings = [setting for source in sources for setting in source.read(mistakes)]
        settings += environment_settings(environ)
        known = {setting.section for setting in settings}
        for text in overrides:
            settings += mistakes.attempt(override, text, known) or ()
        for setting in settings:
            try:
                config.take(setting)
            except ConfigError as error:
                error.place = setting.place
                mistakes.add(error)
        for section in config:
            if not mistakes.are_in(section):  # else a bad key would be reported as missing, too
                mistakes.attempt(check_source, section, config[section])
    return config


class ConfigFile:
    """A file of the configuration; "-" is standard input.

    What cannot be read twice, such as a pipe, is kept: a reload finds it as it was.
    """

    def __init__(self, path: str):
        self.name = "standard input" if path == "-" else path
        self._path = path
        self._kept = None

    def read(self, mistakes: Mistakes) -> List[Setting]:
        """Return the settings, and note what is wrong."""
        try:
            content = self._kept if self._kept is not None else self._content()
            return read_settings(content.decode("utf-8-sig"), self.name, mistakes)
        except OSError as error:
            mistakes.add(ConfigError(error.strerror, place=self.name))
        except UnicodeDecodeError:
            mistakes.add(ConfigError("not UTF-8", place=self.name))
        return []

    def _content(self):
        with open(0 if self._path == "-" else self._path, "rb", closefd=self._path != "-") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
            if len(content) > MAX_CONFIG_BYTES:
                raise OSError(errno.EFBIG, "larger than %d bytes" % MAX_CONFIG_BYTES)
            if self._path == "-" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                self._kept = content
            return content


class ConfigText(NamedTuple):
    """A configuration in a text, in the form of a file."""

    text: str
    name: str = "configuration"

    def read(self, mistakes: Mistakes) -> List[Setting]:
        """Return the settings, and note what is wrong."""
        return read_settings(self.text, self.name, mistakes)


class ConfigMapping(NamedTuple):
    """A configuration in the form {section: {key: value}}."""

    sections: Dict[str, Dict[str, Any]]
    name: str = "configuration"

    def read(self, mistakes: Mistakes) -> List[Setting]:
        """Return its settings."""
        settings = []
        for section, pairs in self.sections.items():
            settings.append(Setting(self.name, section, "", ""))
            settings += [Setting(self.name, section, key, str(value))
                         for key, value in pairs.items()]
        return settings


SECTION_LINE = re.compile(r"\[([^]]+)\]\s*([#;].*)?")
KEY_LINE = re.compile(r'(?:"(?P<quoted>[^"]+)"\s*|(?P<plain>[^="[][^=]*))=\s*(?P<text>.*)')


def read_settings(content: str, name: str, mistakes: Mistakes) -> List[Setting]:
    """Read an INI file, and note what is wrong with it.

    Not by configparser, which knows no lines: an error is reported with its line, and a key that is
    set twice with both. A line that is indented more than its key continues the value; a comment or
    an empty line ends it. A key in double quotes may have "=" in it, or begin with "#"
    or "[".
    """
    settings, lines_of_keys = [], {}
    section, indent = "", FOREVER  # indent: of the key whose value may go on; else FOREVER
    for number, line in enumerate(content.split("\n"), 1):
        words = line.strip()
        place = "%s:%d" % (name, number)
        depth = len(line) - len(line.lstrip())
        header, pair = SECTION_LINE.fullmatch(words), KEY_LINE.fullmatch(words)
        if not words or words[0] in "#;":
            indent = FOREVER
        elif depth > indent:
            settings[-1] = settings[-1]._replace(text=settings[-1].text + "\n" + words)
        elif header:
            section, indent = header.group(1), FOREVER
            settings.append(Setting(place, section, "", ""))
        elif pair and section:
            key, indent = pair["quoted"] or pair["plain"].rstrip(), depth
            first = lines_of_keys.setdefault((section, key), number)
            if first != number:
                mistakes.add(ConfigError("set twice, in lines %d and %d" % (
                    first, number), section, shown_key(key), place))
            settings.append(Setting(place, section, key, pair["text"]))
        else:  # without its text, which may be a secret
            indent = FOREVER
            words = "neither a [section] nor key = value"
            if pair:
                words = "a key before the first [section]; write one above it, such as [instance]"
            mistakes.add(ConfigError(words, place=place))
    return settings


def environment_settings(environ: Dict[str, str]) -> List[Setting]:
    """Return the settings that environment variables make."""
    return [Setting(variable + " in the environment", "instance", key, environ[variable])
            for key, variable in VARIABLES.items() if environ.get(variable)]


OVERRIDE = re.compile(r'(?P<name>(?:"[^"]*"|[^="])*)=(?P<text>.*)', re.DOTALL)


def override(text: str, known: Iterable[str] = ()) -> List[Setting]:
    """Read SECTION.KEY=VALUE; the first "=" outside double quotes ends the key.

    Raises ConfigError. See split_name for `known`.
    """
    match = OVERRIDE.fullmatch(text)
    try:
        if not match:
            raise ConfigError(
                "not SECTION.KEY=VALUE; write it like instance.instance-type=m7g.large")
        section, key = split_name(match["name"].strip(), known)
    except ConfigError as error:
        error.place = "--set"
        raise
    return [Setting("--set", section, "", ""),
            Setting("--set", section, key, match["text"].strip())]


def split_name(name: str, known: Iterable[str] = ()) -> Tuple[str, str]:
    """Split SECTION.KEY after the longest section in `known` or in SETTINGS.

    A key may stand in double quotes. Raises ConfigError.
    """
    in_front, _, _ = name.partition('"')  # a dot in a quoted key splits nothing
    dots = [at for at, char in enumerate(in_front) if char == "."]
    for dot in reversed(dots):
        section, key = name[:dot], name[dot + 1:]
        if section in known or kind_of(section) in SETTINGS:
            break
    else:
        raise ConfigError("%s: no such section; write SECTION.KEY with one of: %s" % (
            shown_section(name), ", ".join(SETTINGS)))
    if len(key) > 1 and key.startswith('"') and key.endswith('"'):
        key = key[1:-1]
    if not key:
        raise ConfigError("no key; write SECTION.KEY", section)
    return section, key


def kind_of(section: str) -> str:
    """Return the name that a section has in SETTINGS, if it is there at all."""
    return section if section in SETTINGS else re.sub(" .+", " NAME", section)


def default_settings(kind: str) -> Dict[str, Any]:
    """Return the defaults of a kind of section."""
    return {key: default for key, (_, default) in SETTINGS[kind].items() if key != "*"}


def checked_value(section: str, key: str, text: str, known: dict) -> Any:
    """Return the value of a text. Raises ConfigError with what would be right."""
    parse, default = find_setting(section, key, text, known)
    if not text and default is not None and not default:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(str(error), section, key)


SECRET_KEYS = ("secret-access-key", "session-token", "authorization-token")


def find_setting(section: str, key: str, text: str, known: dict) -> Tuple[Parser, Any]:
    """Find the parser and the default of a key. Raises ConfigError if there is no such key."""
    if key in known and key != "*":
        return known[key]
    if "*" not in known:
        raise ConfigError(unknown_key(section, key, text, known), section, shown_key(key))
    try:
        KEY_PARSERS.get(kind_of(section), str)(key)
    except ValueError as error:
        raise ConfigError(str(error), section, shown_key(key))
    return known["*"]


def unknown_key(section: str, key: str, text: str, known: dict) -> str:
    """Say what to write instead of an unknown key."""
    if section == "instance" and key in FORMER_KEYS:
        return "no longer a key; write in [metadata]: " + metadata_line(FORMER_KEYS[key], text)
    if key in OTHER_NAMES:
        return "unknown key; write " + OTHER_NAMES[key]
    owners = ["[%s]" % kind for kind, keys in SETTINGS.items() if key in keys]
    if owners and key != "*":
        return "unknown key; it belongs in " + " or ".join(owners)
    return "unknown key" + nearest(key, known)


def metadata_line(path: str, text: str) -> str:
    """Describe the line of [metadata] that fills a path, without its value, maybe a secret."""
    if "," in text:
        return "%s = the first value, and each further one on an indented line" % path
    return "%s = the same value" % path


def check_source(section: str, settings: Dict[str, Any]) -> None:
    """Refuse a source of credentials without the keys that it needs."""
    if not has_source(section):
        return
    for key in SOURCES[settings["source"]].needs:
        if not settings[key]:
            raise ConfigError("missing; source = %s needs it" % settings["source"], section, key)


def has_source(section: str) -> bool:
    """Tell whether a section is about credentials, and has a source."""
    return "source" in SETTINGS[kind_of(section)]


def shown_key(key: str, instead: str = "(a line)") -> str:
    """Return a key for an error message, unless it may be a secret on a line of its own."""
    word = "[A-Za-z]?[a-z0-9]*"
    is_harmless = len(key) < 40 and re.fullmatch("%s([_-]%s)*" % (word, word), key)
    return key if is_harmless else instead


def shown_section(section: str) -> str:
    """Return a section for an error message, unless it may be a secret: letters, few digits."""
    is_harmless = re.fullmatch("[A-Za-z]+([ _.-][A-Za-z]*[0-9]{0,3})*", section)
    return section if is_harmless else "(a section)"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, or list them all."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    if near:
        return "; did you mean %s?" % near[0]
    return "; use one of: " + ", ".join(sorted(known))


# Key of [credentials] and [role NAME] -> the sources that use it; all use one that is not here.
SOURCES_THAT_USE = {
    "access-key-id": ("static",),
    "secret-access-key": ("static",),
    "session-token": ("static",),
    "profile": ("profile",),
    "file": ("profile",),
    "command": ("process",),
    "timeout": ("profile", "process"),
}

Idle = Tuple[str, str, str]  # section, key, why it does nothing


def idle_settings(config: Configuration, service: MetadataService) -> List[str]:
    """Say where each setting is that has no effect beside the others, and why.

    None of them is an error; only what is certain is reported.
    """
    idle = [*idle_tags(config), *idle_credentials(config), *idle_events(service),
            *idle_faults(service)]
    return [str(ConfigError(words, section, key, config.places.get((section, key), "")))
            for section, key, words in idle]


def idle_tags(config: Configuration) -> Iterator[Idle]:
    """Find tags that are not served."""
    if config["tags"] and config["metadata-options"]["instance-metadata-tags"] != "enabled":
        yield "tags", "", ("not served unless [metadata-options] has "
                           "instance-metadata-tags = enabled")


def idle_credentials(config: Configuration) -> Iterator[Idle]:
    """Find settings of credentials that their source does not use, or for which there is no role.
    """
    for section, texts in config.texts.items():
        settings = config[section]
        if not has_source(section):
            continue
        for key in [key for key, text in texts.items() if text]:
            sources = SOURCES_THAT_USE.get(key, SOURCES)
            if not settings.get("role", section):
                yield section, key, "not used: role is empty"
            elif settings["source"] not in sources:
                yield section, key, "not used unless source = " + " or ".join(sources)
            elif key == "form" and not settings["path"]:
                yield section, key, "not used: form is for a path, and there is none"


def idle_events(service: MetadataService) -> Iterator[Idle]:
    """Find events that were over before they were read."""
    for event in service.events:
        if event.was_over():
            section = "events " + event.instance if event.instance else "events"
            yield section, event.name, ("all its times are past; the event is served in its "
                                         "final state")


def idle_faults(service: MetadataService) -> Iterator[Idle]:
    """Find faults that are over, or affect nothing that is served."""
    now = service.clock()
    paths_of = functools.lru_cache(None)(service.every_path)
    for fault in service.faults:
        names = [fault.instance] if fault.instance else service.instance_names()
        if fault.is_over(now):
            yield "faults", fault.name, "the fault is over, and stays off until its line changes"
        elif not any(fault.concerns(path, found)
                     for name in names for path, found in paths_of(name).items()):
            yield "faults", fault.name, ("has no effect: it matches no path that is served, or "
                                         "only paths that it cannot change")


# How a configuration is written. Texts are {section: {key: text}}.

Texts = Dict[str, Dict[str, str]]


def ini_text(sections: Texts) -> str:
    """Write a configuration in the form of a file, in the order of SETTINGS."""
    paragraphs = []
    for kind, known in SETTINGS.items():
        for section, settings in sections.items():
            if settings and kind_of(section) == kind:
                keys = [key for key in known if key in settings]
                keys += [key for key in settings if key not in known]
                paragraphs.append("[%s]\n" % section + "".join(
                    ini_line(key, settings[key]) for key in keys))
    return "\n".join(paragraphs)


def ini_line(key: str, text: str) -> str:
    """Write a key and its value."""
    return ("%s = %s" % (ini_key(key), ini_value(text))).rstrip(" ") + "\n"


def ini_key(key: str) -> str:
    """Write a key so that reading gives it back; "" if an INI file cannot have it."""
    if re.fullmatch(r"[\w./+,@-]+", key, re.ASCII):
        return key
    return "" if re.search('["\n]', key) else '"%s"' % key


def ini_value(text: str) -> Optional[str]:
    """Write a value so that reading gives it back; None if an INI file cannot have it.

    Reading strips each line, and an empty line or a comment ends a value. Control characters are
    kept out of files, and of the terminals that show them.
    """
    lines = text.split("\n")
    if any(line != line.strip() or CONTROL_CHARACTER.search(line) for line in lines):
        return None
    if any(not line or line[0] in "#;" for line in lines[1:]):
        return None
    return "\n  ".join(lines)


CONTROL_CHARACTER = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")


# ---------------------------------------------------------------- overlay ---------------------
#
# What is set until the next boot, in a file of its own below /run that is read last: the program's
# part of `service fake-metadata set`, `unset` and `show`.

SECRET_SECTIONS = ("user-data",)  # passwords stand in user data
MAX_SHOWN_TEXT = 100  # characters; longer ones are keys and documents
OVERLAY_HEAD = "# Until the next boot: see service fake-metadata set, unset, show.\n"


def change_overlay(path: str, configs: Iterable[str], verb: str, name: str, text: str = "") -> str:
    """Set or unset SECTION.KEY in an overlay; return a line that says what has changed.

    The overlay wins over the configurations. Raises ConfigError, and OSError if the file cannot be
    written; then it is as before.
    """
    overlay, below = written_texts([path]), written_texts(configs)
    section, key = split_name(name, {*overlay, *below})
    former = shown_setting(section, key, overlay, below)
    if verb == "set":
        check_written(section, key, text)
        overlay.setdefault(section, {})[key] = text
    else:
        take_setting(overlay, section, key)
    replace_file(path, OVERLAY_HEAD + ini_text(overlay))
    shown = shown_setting(section, key, overlay, below)
    remark = "until the next boot" if verb == "set" else "as in the configuration"
    if verb == "set" and section in ("events", "faults") and shown == former:
        remark += "; unchanged, so not restarted: to restart it, unset it first"
    return "%s = %s (%s; was: %s)" % (setting_name(section, key), shown, remark, former)


def take_setting(overlay: Texts, section: str, key: str) -> None:
    """Take a setting out of an overlay. Raises ConfigError if it is not in there."""
    if key not in overlay.get(section, {}):
        names = [setting_name(*place) for place in settings_of(overlay)]
        raise ConfigError("%s is not set; set until the next boot: %s" % (
            setting_name(section, key), ", ".join(names) or "nothing"))
    del overlay[section][key]
    if not overlay[section]:
        del overlay[section]


def overlay_in_words(path: str, configs: List[str]) -> List[str]:
    """Describe an overlay: what is set, and what the configurations below it have instead."""
    overlay, below = written_texts([path]), written_texts(configs)
    if not overlay:
        return ["nothing is set until the next boot"]
    lines = ["set until the next boot:"]
    for section, key in settings_of(overlay):
        lines.append("  %s = %s (in the configuration: %s)" % (
            setting_name(section, key), shown_setting(section, key, overlay),
            shown_setting(section, key, below)))
    return lines


def settings_of(texts: Texts) -> List[Tuple[str, str]]:
    """List section and key of each setting."""
    return [(section, key) for section, keys in texts.items() for key in keys]


def setting_name(section: str, key: str) -> str:
    """Return SECTION.KEY as split_name takes it."""
    return "%s.%s" % (section, ini_key(key))


def shown_setting(section: str, key: str, *layers: Texts) -> str:
    """Return the text of a setting in the first layer that has it; hide a secret."""
    for texts in layers:
        if key in texts.get(section, {}):
            return shown_text(section, key, texts[section][key])
    return "not set"


def shown_text(section: str, key: str, text: str) -> str:
    """Return a text for a terminal, in one line; of secrets and documents only the size."""
    if not text:
        return "(empty)"
    if key in SECRET_KEYS:
        return "(a secret)"
    if section in SECRET_SECTIONS and key != "file" or len(text) > MAX_SHOWN_TEXT or "\n" in text:
        return "(%d characters)" % len(text)
    return printable(text)


def written_texts(paths: Iterable[str]) -> Texts:
    """Read the texts of configurations as they are written; the later file wins."""
    texts = {}
    with Mistakes({}) as mistakes:
        for path in paths:
            for setting in ConfigFile(path).read(mistakes):
                keys = texts.setdefault(setting.section, {})
                if setting.key:
                    keys[setting.key] = setting.text
    return texts


def check_written(section: str, key: str, text: str) -> None:
    """Refuse what a configuration file cannot hold. Raises ConfigError."""
    if re.search(r"[\[\]\n]", section) or not ini_key(key):
        raise ConfigError("a name in a file cannot have brackets, double quotes or line breaks",
                          section, shown_key(key))
    if ini_value(text) is None:
        raise ConfigError(
            "a value in a file cannot have blanks at the ends of a line, control characters, or "
            "further lines that are empty or begin with # or ;", section, key)


def read_text() -> str:
    """Read a setting's text from standard input. Raises ConfigError."""
    with open(0, "rb", closefd=False) as file:
        content = file.read(MAX_SOURCE_BYTES + 1)
    if len(content) > MAX_SOURCE_BYTES:
        raise ConfigError("standard input: larger than %d bytes" % MAX_SOURCE_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("standard input: not UTF-8")
    return re.sub(r"[ \t\r]+$", "", text, flags=re.MULTILINE).strip("\n").lstrip(" \t")


def replace_file(path: str, text: str) -> None:
    """Write a file anew, whole at any moment, with owner and mode as they are."""
    former = os.stat(path)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path + ".part")
    with open(path + ".part", "x", encoding="utf-8", opener=open_private) as file:
        os.fchown(file.fileno(), former.st_uid, former.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(former.st_mode))
        file.write(text)
    os.replace(path + ".part", path)


# ---------------------------------------------------------------- state -----------------------

class State:
    """What the service has done, in a file for the sender of a signal: service fake-metadata.

    The file `state` in RUNTIME_DIRECTORY is JSON, a key a line, without secrets:

        "starts", "reloads", "rotations"   how many of each there were within this boot
        "error"     why the last start or reload failed; "" if it did not
        "rotation-error"    the same of the last rotation
        "read"      {FILE: when it was last changed, as `stat -c %.9Y` says it}, of the last reading
        "read-at"   when that was
        "roles"     {ROLE: "...WXYZ, until 2026-12-01T08:00:00Z", or "none"}
        "clients"   those that see an instance, or get a role, of their own
        "events"    those that have begun
        "faults"    those that are active
    """

    def __init__(self, directory: Optional[str] = None, clock: Callable[[], float] = time.time):
        self._path = os.path.join(directory, STATE_FILE) if directory else ""
        self._clock = clock
        self._fields = dict(EMPTY_STATE)
        former = read_state(directory)
        for name in ("starts", "reloads", "rotations"):
            if isinstance(former[name], int):
                self._fields[name] = former[name]

    def count(self, name: str, fields: dict) -> None:
        """Count a start, reload or rotation, and note its outcome."""
        self.update({name: self._fields[name] + 1, **fields})

    def note_reading(self, changes: Dict[str, str]) -> None:
        """Note the files that are read now; the outcome is written with them."""
        self._fields = {**self._fields, "read": changes, "read-at": utc(self._clock())}

    def update(self, fields: dict) -> None:
        """Write the file, if something has changed."""
        changed = {**self._fields, **fields}
        if self._path and changed != self._fields:
            keep(self._path, json.dumps(changed, indent=2) + "\n")
        self._fields = changed


EMPTY_STATE = {
    "starts": 0,
    "reloads": 0,
    "rotations": 0,
    "error": "",
    "rotation-error": "",
    "read": {},
    "read-at": "",
    "roles": {},
    "clients": [],
    "events": [],
    "faults": [],
}


def read_state(directory: Optional[str]) -> Dict[str, Any]:
    """Read the state that a service has written; the empty one where there is none."""
    state = {}
    if directory:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            state = json.loads(read_file(os.path.join(directory, STATE_FILE), MAX_STATE_BYTES))
    if not isinstance(state, dict):
        state = {}
    return {**EMPTY_STATE, **state}


def changes_of(paths: Iterable[str]) -> Dict[str, str]:
    """Tell when each file was last changed, as `stat -c %.9Y` does; "" without a file."""
    changes = {}
    for path in paths:
        changes[path] = ""
        with contextlib.suppress(OSError):
            changes[path] = "%d.%09d" % divmod(os.stat(path).st_mtime_ns, 10 ** 9)
    return changes


def state_in_words(state: Dict[str, Any]) -> List[str]:
    """Describe what is served, by the state that the service has written."""
    lines = ["configuration read at %s:" % (state["read-at"] or "(not yet)")]
    for path, changed in state["read"].items():
        lines.append("  %s%s" % (path, file_remark(path, changed)))
    if state["error"]:
        lines.append("not reloaded, the old configuration stays:")
        lines += ["  " + line for line in state["error"].split("\n")]
    if state["rotation-error"]:
        lines += ["the last rotation failed:", "  " + state["rotation-error"]]
    lines.append("served:")
    lines += ["  role %s: %s" % role for role in state["roles"].items()]
    lines += ["  " + words for words in state["clients"]]
    lines += ["  event %s has begun" % name for name in state["events"]]
    lines += ["  fault %s is active" % name for name in state["faults"]]
    return lines


def file_remark(path: str, changed: str) -> str:
    """Say when a file that was read last changed, and whether it has changed since."""
    if changes_of([path])[path] != changed:
        return ", changed since then; remedy: service fake-metadata reload"
    return ", changed at %s" % utc(float(changed)) if changed else ", not found"


# ---------------------------------------------------------------- process ---------------------

class Service:
    """The service as a whole: configuration, credentials, signer, log, server.

    `read_config` returns the Configuration, at the start and at each reload; its errors are
    ConfigErrors. `address` and `log` win over the configuration. `complain` is told, like the
    log, why there are no new credentials. `files` are those whose age the state has. To be used
    in one thread; `run` is its loop.
    """

    def __init__(self, read_config, address=None, log="", environ=os.environ, complain=None,
                 files=()):
        self._read_config = read_config
        self._files = files
        self._address_option = address
        self._log_option = log
        self._environ = environ
        self._complain = complain
        self._box = box_id(environ.get("STATE_DIRECTORY"))
        self._state = State(environ.get("RUNTIME_DIRECTORY"))
        self._is_rotating = False
        self.config = self._read(read_config)
        self.log = Log(self._log_path(self.config))
        token_key = session_token_key(environ.get("RUNTIME_DIRECTORY"))
        self.server = Server(self._addresses(self.config), SessionTokens(token_key), self.log)
        self._watch = AddressWatch(self.server, self.log.say)
        self.signer = None
        try:
            self.credentials, self.signer, self.server.service = self._make_service(self.config)
        except ConfigError:
            self.server.server_close()
            self.log.close()
            raise

    @property
    def url(self) -> str:
        """Return the URL at which clients on this box find the service, once it is open."""
        address, port = self.server.server_address[:2]
        return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address), port)

    def open(self) -> None:
        """Take the port, fetch the first credentials, open the port and say so.

        Raises OSError if it cannot listen.
        """
        self.server.server_bind()
        self.fetch_first_credentials(FIRST_FETCH_WAIT)
        if self.server.stopping:
            return
        self.server.server_activate()
        self._state.count("starts", {"error": "", **self._served()})
        self._announce()
        self._look_around()
        self._watch.look(self._watched_addresses)
        self._forget_instances()
        self._keep_identity()

    def run(self) -> None:
        """Serve until `stop`."""
        self.server.serve_forever()
        self.log.say("stopped")

    def close(self) -> None:
        """End fetches under way; close all sockets and the log."""
        for credentials in self.credentials.values():
            credentials.cancel(wait=1)
        self.signer.close()
        self._watch.close()
        self.server.server_close()
        self.log.close()

    def reload(self) -> None:
        """Reopen the log and take the configuration as it is now; a bad one changes nothing."""
        trouble = ""
        try:
            self.configure(self._read_config)
        except (ConfigError, OSError) as error:
            trouble = explanation_of(error)
            self.log.reopen(self._log_path(self.config))
            self.log.say("not reloaded, the old configuration stays: %s" % (
                "; ".join(trouble.splitlines())))
        self._state.count("reloads", {"error": trouble, **self._served()})

    def configure(self, read_config: Callable[[], Configuration]) -> None:
        """Take another configuration, and reopen the log.

        Raises ConfigError, or OSError if it cannot listen there, and changes nothing.
        """
        config = self._read(read_config)
        credentials, signer, service = self._make_service(config, self.credentials)
        self._move(config)
        self._read_config = read_config
        self.signer = signer
        self._adopt(config, credentials, service)

    def rotate(self) -> None:
        """Make new credentials of all roles now; the log and the state say when they are ready."""
        self.log.say("new credentials requested")
        for credentials in self.credentials.values():
            credentials.refresh()
        if not self._is_rotating:
            self._is_rotating = True
            self.when_fetched(self._finish_rotation)

    def when_fetched(self, callback: Callable[[], Any]) -> None:
        """Have something called once no credentials are being fetched."""
        if any(credentials.pending for credentials in self.credentials.values()):
            again = functools.partial(self.when_fetched, callback)
            self.server.call_later(DOCUMENT_POLL, again)
        else:
            callback()

    def trouble(self) -> str:
        """Say why there are no new credentials; "" if there are."""
        return "; ".join("no new credentials for %s: %s" % (role, credentials.error)
                         for role, credentials in self.credentials.items() if credentials.error)

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """Stop accepting, and end when what is in flight is done, or after some seconds."""
        if not self.server.stopping:
            self.log.say("stopping")
            self.server.stop(patience)

    def dump(self) -> str:
        """Render every path with its value, as it would be served."""
        self.fetch_first_credentials(patience=86400)
        lines = []
        for path in self.server.service.paths():
            lines.append(path)
            lines += ["    " + line for line in self._text_at(path).split("\n")]
        return "\n".join(lines)

    def fetch_first_credentials(self, patience: float) -> None:
        """Fetch credentials for all roles, and wait some seconds for them at most."""
        for credentials in self.credentials.values():
            credentials.refresh()
        give_up = time.monotonic() + patience
        self.server.call_later(patience, lambda: None)  # so that serve_once ends in time
        while time.monotonic() < give_up and not self.server.stopping:
            if not any(credentials.pending for credentials in self.credentials.values()):
                break
            self.server.serve_once()

    def _read(self, read_config):
        """Read the configuration; note first how old it is: it may change at any moment."""
        self._state.note_reading(changes_of(self._files))
        return read_config()

    def _finish_rotation(self):
        """Report the outcome of a rotation."""
        self._is_rotating = False
        served, trouble = self._served(), self.trouble()
        roles = ["%s %s" % role for role in served["roles"].items()]
        self.log.say("not rotated: %s" % trouble if trouble else "rotated: %s" % "; ".join(roles))
        self._state.count("rotations", {"rotation-error": trouble, **served})

    def _served(self):
        """Describe what is served now, for the state."""
        roles = {role: credentials.in_words() for role, credentials in self.credentials.items()}
        return {"roles": roles, "clients": self.server.service.clients_in_words(),
                **self.server.service.under_way()}

    def _text_at(self, path):
        """Return the text that is served at a path, once there is one."""
        found = self.server.service.find(path)
        if isinstance(found, SignedDocument) and not self._keeps_identity():
            return "(signed with a new key at each start)"
        document = found.current()
        while not document and found.pending:
            self.server.serve_once()
            document = found.current()
        if not document:
            return "(no signature)" if isinstance(found, SignedDocument) else "(no credentials)"
        return document.body.decode("utf-8", "backslashreplace")

    def _addresses(self, config):
        return [self._address_option] if self._address_option else config["server"]["bind"]

    def _watched_addresses(self):
        return () if self._address_option else self.config["server"]["addresses"]

    def _move(self, config):
        """Listen where a configuration says, and log what has changed."""
        before = self.server.places
        self.server.move(self._addresses(config))
        for place in set(before).difference(self.server.places):
            self.log.say("no longer listening on " + url_of(place.host, place.port))
        self._tell_places(set(self.server.places).difference(before))

    def _log_path(self, config):
        return self._log_option or config["server"]["log"]

    def _make_service(self, config, former=None):
        """Make the credentials, the signer and the service that a configuration describes."""
        with Mistakes(config.places) as mistakes:
            signer = mistakes.attempt(self._make_signer, config)
            credentials = mistakes.attempt(
                make_credentials, config, self.log.say, self.server.call_soon_threadsafe, former,
                os.urandom, self._complain)
        hosts = [host for host, _ in self._addresses(config)]
        with Mistakes(config.places) as mistakes:
            service = mistakes.attempt(
                MetadataService, config, credentials, signer, self._box, hosts,
                self.server.service)
        return credentials, signer, service

    def _make_signer(self, config):
        """Make the signer of the identity document, unless the former one can go on."""
        identity = configured_identity(config["instance-identity"])
        if self.signer and self.signer.identity == identity:
            return self.signer
        make_identity = functools.partial(identity_by_child, identity_path(self._environ))
        return Signer(identity, make_identity, self.log.say, self.server.call_soon_threadsafe)

    def _keeps_identity(self):
        return self.signer.identity or identity_path(self._environ)

    def _keep_identity(self):
        """Make the key of signatures, if it is one that is kept, so that --certificate finds it."""
        if identity_path(self._environ):
            self.signer.start()

    def _look_around(self):
        """Each second, refresh credentials that are due, and update log and state."""
        self.server.call_later(SWEEP_SECONDS, self._look_around)
        for credentials in self.credentials.values():
            credentials.refresh_if_needed()
        self._tell_events()
        self._state.update(self._served())

    def _forget_instances(self):
        """Each hour, forget the instances of clients, which may be gone."""
        self.server.call_later(FORGET_SECONDS, self._forget_instances)
        self.server.service.forget()

    def _tell_events(self):
        for words in self.server.service.news():
            self.log.say(words)

    def _announce(self):
        self.log.say("%s started, process %d" % (VERSION, os.getpid()))
        self._warn_of_readable_secrets()
        self._tell_idle_settings()
        self._tell_places(self.server.places)
        self.log.flush()

    def _tell_places(self, places):
        for place in places:
            address, port = self.server.listeners[place].getsockname()[:2]
            if not is_loopback(address) and address not in SERVICE_ADDRESSES:
                self.log.say(
                    "bound to %s: anyone who reaches this address gets the credentials" % address)
            self.log.say("listening on " + url_of(address, port))

    def _warn_of_readable_secrets(self):
        """Report files of the configuration with keys in them that others can read."""
        for path in self.config.files_with_secrets():
            with contextlib.suppress(OSError):  # it may be gone again
                if os.stat(path).st_mode & stat.S_IROTH:
                    self.log.say(readable_by_others(path))

    def _tell_idle_settings(self):
        """Log the settings that have no effect."""
        for words in idle_settings(self.config, self.server.service):
            self.log.say(words)

    def _adopt(self, config, credentials, service):
        """Replace the old parts by those that a reload has made."""
        former, self.credentials = self.credentials, credentials
        self.config = config
        self.server.service = service
        for role, old in former.items():
            if credentials.get(role) is not old:
                old.cancel()
        for role, new in credentials.items():
            if former.get(role) is not new:
                new.refresh()
        self.log.reopen(self._log_path(config))
        read = "configuration read" if config.places else "no configuration to read"
        self.log.say("reloaded: log reopened, %s" % read)
        self._keep_identity()
        self._warn_of_readable_secrets()
        self._tell_idle_settings()
        self._tell_events()


class Daemon:
    """A Service as a process: with signals, and with a supervisor.

    Raises ConfigError, and OSError if it cannot listen.
    """

    def __init__(self, options: argparse.Namespace, environ: Dict[str, str] = os.environ):
        self._has_log = options.log is not None
        self._environ = environ
        self._is_ready = False
        raise_file_limit()
        self.service = Service(
            config_reader(options, environ), address_option(options), options.log, environ,
            files=options.config)

    def run(self) -> None:
        """Serve until TERM or INT."""
        signals = {
            signal.SIGHUP: self.reload,
            signal.SIGUSR1: self.service.rotate,
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
        }
        for number, action in signals.items():
            signal.signal(number, functools.partial(self._note_signal, action))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY_SIGNALS)
        try:
            self.service.open()
            if not self.service.server.stopping:
                self._say_ready()
            self.service.run()
        finally:
            self.service.close()
            for number in signals:  # a late one must not look like a crash
                signal.signal(number, signal.SIG_IGN)

    def reload(self) -> None:
        """Read the configuration again, and reopen the log."""
        self._tell_supervisor("RELOADING=1")
        self.service.reload()
        self._tell_supervisor("READY=1")

    def stop(self) -> None:
        """End when what is in flight is done."""
        self._tell_supervisor("STOPPING=1")
        self.service.stop()

    def _note_signal(self, action, number, frame):
        """Have the loop act on a signal between two rounds."""
        self.service.server.call_soon_threadsafe(action)

    def _say_ready(self):
        if not self._has_log and not self._environ.get("NOTIFY_SOCKET"):
            warn("paste this in another shell: export AWS_EC2_METADATA_SERVICE_ENDPOINT="
                 + self.service.url)
        self._is_ready = True
        self._tell_supervisor("READY=1")
        if self._environ.get("WATCHDOG_USEC"):
            self._pet_watchdog()

    def _pet_watchdog(self):
        """Tell a watchdog each second that the loop turns."""
        self.service.server.call_later(SWEEP_SECONDS, self._pet_watchdog)
        self._tell_supervisor("WATCHDOG=1")

    def _tell_supervisor(self, message):
        if self._is_ready:  # before that it would take us for started
            notify(message, self._environ)


def url_of(address: str, port: int) -> str:
    """Write the URL of an address and a port."""
    return "http://%s:%d/" % ("[%s]" % address if ":" in address else address, port)


def notify(message: str, environ: Dict[str, str] = os.environ) -> None:
    """Tell the supervisor, if there is one: systemd, or start-stop-daemon --notify-await.

    The protocol is that of sd_notify(3).
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger:
            messenger.setblocking(False)
            messenger.sendto(message.encode(), address)
    except OSError:  # nobody listens, or reads
        pass


# ---------------------------------------------------------------- in a test, for a command ----

# What would hide this service from an SDK: keys, profiles and files that come before the metadata
# service in its chain (SDKs and Tools Reference Guide, "Settings reference"; and older SDKs).
HIDING_VARIABLES = (
    "AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CREDENTIAL_EXPIRATION", "AWS_CREDENTIAL_FILE",
    "AWS_CREDENTIAL_PROFILES_FILE", "AWS_DEFAULT_PROFILE", "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_PROFILE", "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE", "EC2_METADATA_SERVICE_ENDPOINT",
    "FAKE_METADATA_PID",  # of a service outside
)
FILES_THAT_HIDE = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
NO_PROXY_VARIABLES = ("no_proxy", "NO_PROXY")  # of both, curl and Python read the first


def client_environment(environ: Dict[str, str], url: str, region: str) -> Dict[str, str]:
    """Make the environment in which AWS clients take keys and a region from a service at a URL.

    A region that is set already stays.
    """
    chosen = {name: value for name, value in environ.items() if name not in HIDING_VARIABLES}
    chosen.update((name, os.devnull) for name in FILES_THAT_HIDE)
    own_region = first_set(environ, REGION_VARIABLES)
    for name in REGION_VARIABLES:
        chosen[name] = environ.get(name) or own_region or region
    own_hosts = first_set(environ, NO_PROXY_VARIABLES)
    for name in NO_PROXY_VARIABLES:
        chosen[name] = exempt(urllib.parse.urlsplit(url).hostname, environ.get(name) or own_hosts)
    chosen["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = chosen["FAKE_METADATA_URL"] = url
    return chosen


def first_set(environ: Dict[str, str], names: Iterable[str]) -> str:
    """Return the first of some variables that is not empty; "" if all are."""
    return next((environ[name] for name in names if environ.get(name)), "")


def exempt(host: str, hosts: str) -> str:
    """Add a host to those of NO_PROXY; "*" is all of them, but only if it stands alone."""
    if hosts.strip() == "*":
        return hosts
    return ",".join(filter(None, (hosts, host)))


class RunningService:
    """A service in a thread of its own, as `serve` gives it to a test.

    All methods may be called in any thread, and return when their effect is served.
    """

    def __init__(self, service: Service):
        self._service = service
        self._service.server.requests = collections.deque(maxlen=MAX_KEPT_REQUESTS)
        self._thread = threading.Thread(target=service.run, name="fake-metadata", daemon=True)

    def start(self) -> None:
        """Begin to serve, also clients that have connected already."""
        self._thread.start()

    @property
    def url(self) -> str:
        """Return http://127.0.0.1:PORT/."""
        return self._service.url

    @property
    def environ(self) -> Dict[str, str]:
        """Return the environment of this process, made for AWS clients to find this service."""
        region = ZONE.fullmatch(self._service.config["instance"]["availability-zone"])["region"]
        return client_environment(os.environ, self.url, region)

    @property
    def requests(self) -> List[Asked]:
        """Return the requests since the last call, the last 10,000 at most."""
        return self._in_its_thread(self._take_requests)

    def rotate(self) -> None:
        """Have new credentials for all roles. Raises SourceError if there are none."""
        self._in_its_thread(self._service.rotate)
        self._wait_for_credentials()
        trouble = self._service.trouble()
        if trouble:
            raise SourceError(trouble)

    def configure(self, config: Union[str, Dict[str, Dict[str, Any]]]) -> None:
        """Serve another configuration. Raises ConfigError, and leaves the old one."""
        reader = functools.partial(load_config, [source_of(config)])
        self._in_its_thread(functools.partial(self._service.configure, reader))
        self._wait_for_credentials()

    def close(self) -> None:
        """End the service and its thread; whatever is in flight is cut off."""
        self._service.server.call_soon_threadsafe(functools.partial(self._service.stop, 0))
        if self._thread.is_alive():
            self._thread.join()

    def _take_requests(self):
        taken = list(self._service.server.requests)
        self._service.server.requests.clear()
        return taken

    def _wait_for_credentials(self):
        fetched = concurrent.futures.Future()
        note = functools.partial(fetched.set_result, None)
        self._in_its_thread(functools.partial(self._service.when_fetched, note))
        self._await(fetched)

    def _in_its_thread(self, step):
        """Have something done in the thread of the service; return what it returns, or raises."""
        outcome = concurrent.futures.Future()
        self._service.server.call_soon_threadsafe(functools.partial(fulfil, outcome, step))
        return self._await(outcome)

    def _await(self, outcome):
        """Wait for a Future that the thread of the service sets, for as long as there is one."""
        while self._thread.is_alive():
            if concurrent.futures.wait([outcome], THREAD_POLL).done:
                break
        if not outcome.done():
            raise RuntimeError("this service has stopped")
        return outcome.result()


def fulfil(outcome: concurrent.futures.Future, step: Callable[[], Any]) -> None:
    """Do something, and give a Future what it returns or raises."""
    try:
        outcome.set_result(step())
    except Exception as error:
        outcome.set_exception(error)


@contextlib.contextmanager
def serve(
    config: Union[str, Dict[str, Dict[str, Any]]] = "",
    bind: str = "127.0.0.1:0",
    log: str = os.devnull,
) -> Iterator[RunningService]:
    """Serve in a thread of its own for as long as the block lasts, for a test.

        with fake_metadata.serve("[credentials]\nlifetime = 1h", bind="127.0.0.1:0") as imds:
            subprocess.run(["aws", "sts", "get-caller-identity"], env=imds.environ)

    `config` is a text in the form of a file, or {section: {key: value}}; `log` a file. No signal is
    touched, and nothing is left behind. Raises ConfigError, and OSError if it cannot listen.
    """
    reader = functools.partial(load_config, [source_of(config)])
    with opened(Service(reader, bind_address(bind), log, own_variables(), warn)) as running:
        running.start()
        yield running


@contextlib.contextmanager
def opened(service: Service) -> Iterator[RunningService]:
    """Open the port of a service for as long as the block lasts, which has to start it."""
    try:
        service.open()
        running = RunningService(service)
        try:
            yield running
        finally:
            running.close()
    finally:
        service.close()


def source_of(config: Union[str, Dict[str, Dict[str, Any]]]) -> Union[ConfigText, ConfigMapping]:
    """Return the source of a configuration that is a text or {section: {key: value}}."""
    return ConfigText(config) if isinstance(config, str) else ConfigMapping(config)


def own_variables() -> Dict[str, str]:
    """Return the environment without the folders of another service."""
    return {name: value for name, value in os.environ.items()
            if name not in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY")}


# The terminal sends these to COMMAND as well as to us.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT)


class Command:
    """COMMAND, which has a service for as long as it runs; all else is as if a shell ran it."""

    def __init__(self, words: List[str]):
        self._words = words
        self._mask = ()  # of signals, as we were given it
        self._given = {}  # signal -> its handler, as we were given it
        self._to_pass_on = []  # signals that only we were sent

    def run(self, options: argparse.Namespace) -> int:
        """Serve, run it, and return its exit status."""
        service = Service(config_reader(options), ("127.0.0.1", 0), options.log or os.devnull,
                          own_variables(), warn)
        self._handle_signals(service)
        with opened(service) as running:
            received = signal.sigtimedwait(TERMINAL_SIGNALS, 0)
            if received:
                self._to_pass_on.append(received.si_signo)
            if self._to_pass_on:  # before there is a COMMAND
                return 128 + self._to_pass_on[0]
            try:
                child = subprocess.Popen(
                    self._words, close_fds=False, preexec_fn=self._restore_signals,
                    env=dict(running.environ, FAKE_METADATA_PID=str(os.getpid())))
            except OSError as error:
                warn("%s: %s" % (self._words[0], os.strerror(error.errno)))
                return 127 if error.errno == errno.ENOENT else 126
            running.start()  # not before: a process with threads is better not forked
            return self._wait(child)

    def _handle_signals(self, service):
        """Have signals act on the service, or wait for COMMAND."""
        call_soon = service.server.call_soon_threadsafe
        handlers = {
            signal.SIGTERM: lambda number, frame: self._to_pass_on.append(number),
            signal.SIGHUP: lambda number, frame: call_soon(service.reload),
            signal.SIGUSR1: lambda number, frame: call_soon(service.rotate),
        }
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        for number in TERMINAL_SIGNALS:
            self._given[number] = signal.getsignal(number)
        for number, handler in handlers.items():
            self._given[number] = signal.signal(number, handler)

    def _restore_signals(self):
        """In the process that becomes COMMAND: have signals as we were given them."""
        for number, handler in self._given.items():
            if handler != signal.SIG_IGN:
                handler = signal.SIG_DFL
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _wait(self, child):
        """Wait for the end of COMMAND; meanwhile pass signals on to it."""
        while child.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(COMMAND_POLL)
            received = signal.sigtimedwait(TERMINAL_SIGNALS, 0)
            if received and received.si_code <= 0:  # from a process: the terminal tells both
                self._to_pass_on.append(received.si_signo)
            while self._to_pass_on:
                child.send_signal(self._to_pass_on.pop())
        return child.returncode if child.returncode >= 0 else 128 - child.returncode


# ---------------------------------------------------------------- capture ---------------------
#
# --capture: what another metadata service serves, as the configuration of this one. Its directories
# are read from the top (MetadataClient, Crawler), turned into facts where there are keys for them,
# and compared with what these facts make here; what differs is written into [metadata].
#
# Nothing that the other service says is trusted: it is bounded, and a text stays inside its value.
# Credentials are never asked for: their place is enough.

META_DATA = "/latest/meta-data/"
PUBLIC_KEYS = META_DATA + "public-keys"
INTERFACES = META_DATA + "network/interfaces/macs/"
SIGNATURES_OF_DOCUMENT = tuple(
    "/latest/dynamic/instance-identity/" + form
    for form in ("dsa2048", "pkcs7", "rsa2048", "signature"))
# The names that a metadata service lists below meta-data/, by which it is known.
KNOWN_NAMES = {path[len(META_DATA):].partition("/")[0]
               for path in ROUTES if path.startswith(META_DATA)}
KNOWN_DIRECTORIES = set(directories_of(ROUTES))
CREDENTIALS_DIRECTORY = re.compile("/security-credentials(-extended)?/")
# In JSON, in JSON within JSON, in XML, in a credentials file; the word alone may be a name.
SECRET_TEXT = re.compile(
    r"""(Secret_?Access_?Key|Session_?Token|"Token)[\\"']*\s*[:=>]|PRIVATE KEY-----""",
    re.IGNORECASE)

# A name in a listing; AEMM lists whole paths. No "%" and "?", which would change the request.
LISTED_NAME = re.compile(r"(?=[!-~]{1,512}$)(?!(.*/)?\.\.?(/|$))([^/%?]+/)*[^/%?]+/?")

# Key of [instance] -> the path below meta-data/ that has it.
INSTANCE_PATHS = {
    "instance-id": "instance-id",
    "instance-type": "instance-type",
    "instance-life-cycle": "instance-life-cycle",
    "system": "system",
    "ami-id": "ami-id",
    "reservation-id": "reservation-id",
    "availability-zone": "placement/availability-zone",
    "availability-zone-id": "placement/availability-zone-id",
    "kernel-id": "kernel-id",
    "ramdisk-id": "ramdisk-id",
    "product-codes": "product-codes",
    "root-device": "block-device-mapping/root",
}

# Key of [instance] -> the field of the identity document that has it.
DOCUMENT_FIELDS = {
    "account-id": "accountId",
    "architecture": "architecture",
    "launch-time": "pendingTime",
    "billing-products": "billingProducts",
}

# Key of an interface -> the name below its MAC, where that is another; and below meta-data/, for a
# service that has no network/interfaces.
INTERFACE_NAMES = {"local-ipv4": "local-ipv4s", "public-ipv4": "public-ipv4s", "ipv6": "ipv6s"}
NAMES_WITHOUT_INTERFACES = (
    "mac", "local-ipv4", "local-hostname", "public-ipv4", "public-hostname", "ipv6",
    "security-groups")

# What is listed one a line, and written with commas.
LISTS = (
    "product-codes", "billing-products", "local-ipv4", "public-ipv4", "ipv6", "security-groups",
    "security-group-ids", "subnet-ipv6-cidr-blocks", "vpc-ipv4-cidr-blocks",
    "vpc-ipv6-cidr-blocks", "ipv4-prefix", "ipv6-prefix")

# Facts that an instance may lack, though another one would make us derive them.
OMISSIBLE = (
    "local-ipv4", "local-hostname", "public-ipv4", "public-hostname", "subnet-ipv4-cidr-block",
    "subnet-ipv6-cidr-blocks", "vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks")

# Facts that are left out where the others make the same: an edit of those has its full effect.
DERIVED = (
    "availability-zone-id", "architecture", "local-hostname", "public-hostname",
    "instance-profile")


class CaptureError(Exception):
    """A metadata service cannot be captured: why, in one line."""


def print_capture(options: argparse.Namespace) -> int:
    """Print the configuration that makes the instance of another metadata service."""
    def give_up(number, frame):
        raise CaptureError("%s took more than %d seconds" % (client.url, CAPTURE_SECONDS))

    try:
        client = MetadataClient(options.capture)
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, CAPTURE_SECONDS)
        text, notes = capture(client, time.time())
    except CaptureError as error:
        warn(str(error))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for note in notes:
        warn("# " + note)
    write_out(text)
    return 0


def capture(client: MetadataClient, now: float) -> Tuple[str, List[str]]:
    """Return the configuration that makes the instance of a metadata service, and what it lacks.

    Raises CaptureError.
    """
    client.open_session()
    crawler = Crawler(client)
    crawler.crawl()
    found = crawler.documents
    sections = facts_in(found, int(now))
    drop_what_is_refused(sections, now)
    leave_out_what_follows(sections, now)
    add_differences(sections, found, now)
    drop_what_is_refused(sections, now)
    heading = "# The instance at %s, captured at %s by fake-metadata %s.\n" % (
        client.url, utc(now), VERSION)
    heading += "# No credentials, but user data and tags as they are, secrets included.\n\n"
    return heading + ini_text(sections), crawler.notes + differences(sections, found, now)


class MetadataClient:
    """A client of another metadata service: IMDSv2 where it gives session tokens, else IMDSv1.

    It uses no proxy, follows no redirect, and limits what it reads. Raises CaptureError.
    """

    def __init__(self, url: str):
        parts, port = split_url(url)
        self._connection_class = http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection_class = http.client.HTTPSConnection
        self._host, self._port = parts.hostname, port or self._connection_class.default_port
        # Without a user and a password.
        self.url = "%s://%s/" % (parts.scheme, parts.netloc.rpartition("@")[2])
        self._headers = {"User-Agent": "fake-metadata/" + VERSION, "Connection": "close"}
        self._room = MAX_CAPTURED_BYTES

    def open_session(self) -> None:
        """Get a session token, if the service gives any."""
        try:
            status, body = self._request("PUT", TOKEN_PATH, {TTL_HEADER: str(CAPTURE_SECONDS)})
        except (socket.timeout, ConnectionResetError, http.client.HTTPException):
            return  # a mock that knows no PUT, or a hop limit that is too low for this client
        except (OSError, ValueError) as error:
            raise CaptureError("nothing answers at %s: %s" % (self.url, reason_of(error)))
        if status == 200 and re.fullmatch(rb"[!-~]{1,1024}", body.strip()):
            self._headers[TOKEN_HEADER] = body.strip().decode()

    def look_at(self, path: str) -> Optional[bytes]:
        """Return the body at a path; None for any status but 200."""
        status, body = self._answer(path)
        return body if status == 200 else None

    def get(self, path: str) -> Optional[bytes]:
        """Return the body at a listed path; None for a 404 or a redirect."""
        status, body = self._answer(path)
        if status == 200:
            return body
        if status == 404 or 300 <= status < 400:
            return None
        why = ""
        if status == 401 and TOKEN_HEADER not in self._headers:
            why = ": it requires a session token, and issues none"
        raise CaptureError("%s answers %d for %s%s" % (self.url, status, path, why))

    def _answer(self, path):
        """Return status and body of an answer."""
        try:
            return self._request("GET", urllib.parse.quote(path, "/!$&'()*+,;=:@~"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CaptureError("%s: no answer for %s: %s" % (self.url, path, reason_of(error)))

    def _request(self, method, path, headers=()):
        connection = self._connection_class(self._host, self._port, timeout=ANSWER_SECONDS)
        try:
            connection.request(method, path, headers={**self._headers, **dict(headers)})
            answer = connection.getresponse()
            if answer.status != 200:
                return answer.status, b""
            limit = min(MAX_ANSWER_BYTES, self._room)
            body = answer.read(limit + 1)
            if len(body) > limit:
                raise CaptureError("%s: the answer for %s is too large" % (self.url, path))
            if answer.length:
                raise ConnectionAbortedError("the answer is incomplete")
            self._room -= len(body)
            return answer.status, body
        finally:
            connection.close()


def split_url(url: str) -> Tuple[urllib.parse.SplitResult, Optional[int]]:
    """Return the parts and the port of the address of a service. Raises CaptureError."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and re.fullmatch("[!-~]+", url)
        has_path = (parts.path + parts.query + parts.fragment).strip("/")
        if is_address and not has_path and re.fullmatch(r"[\w.:%-]+", parts.hostname or ""):
            return parts, parts.port
    except ValueError:
        pass
    raise CaptureError("not the URL of a metadata service; write it like http://169.254.169.254/")


def reason_of(error: Exception) -> str:
    """Say what is wrong with a connection; not in the words of the other side."""
    if isinstance(error, socket.timeout):
        return "no answer within %g seconds" % ANSWER_SECONDS
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, http.client.IncompleteRead) or isinstance(error, ConnectionError):
        return "the connection was lost"
    return "the answer is not HTTP"


class Crawler:
    """Walks through a metadata service.

    `documents` is what it finds: {path: bytes}, with None for credentials and signatures, which
    differ here; `notes` say what it has to leave out.
    """

    def __init__(self, client: MetadataClient):
        self.documents = {}
        self.notes = []
        self._client = client
        self._asked = set()
        self._tells_directories = True

    def crawl(self) -> None:
        """Read the whole tree. Raises CaptureError."""
        names = self._listing(META_DATA[:-1])
        if KNOWN_NAMES.isdisjoint(name.partition("/")[0] for name in names):
            raise CaptureError("no metadata service at %s: no name that one has is listed at %s" % (
                self._client.url, META_DATA))
        self._tells_directories = any("/" in name for name in names)
        self._take_names(META_DATA[:-1], names)
        self._take_entry(META_DATA + "iam", "security-credentials/")  # moto lists only iam
        self._take_directory("/latest/dynamic")
        self._leave_out_what_is_a_directory()
        self._take_user_data()

    def _take_directory(self, path):
        """Take everything below a directory."""
        self._take_names(path, self._listing(path))

    def _take_names(self, path, names):
        if path.count("/") > MAX_DEPTH:
            raise CaptureError("%s: directories too deep at %s" % (self._client.url, path))
        if path == PUBLIC_KEYS and names:
            self.documents[path] = "\n".join(names).encode()
            names = [name.partition("=")[0] + "/" for name in names]
        listed = set(names)
        for name in names:
            if name + "/" not in listed:  # a directory that is listed as a file as well
                self._take_entry(path, name)

    def _take_entry(self, directory, name):
        path = directory + "/" + name.rstrip("/")
        if path in self._asked:
            return
        self._asked.add(path)
        if len(self._asked) > MAX_CAPTURED_PATHS:
            raise CaptureError("%s: more than %d paths" % (self._client.url, MAX_CAPTURED_PATHS))
        if not LISTED_NAME.fullmatch(name):
            self._note(path, "is not a valid path")
        elif CREDENTIALS_DIRECTORY.search(path) or path in SIGNATURES_OF_DOCUMENT:
            self.documents[path] = None
        elif name.endswith("/"):
            self._take_directory(path)
        else:
            self._take_value(path)

    def _take_value(self, path):
        """Take the value at a path listed without a slash, or the directory, if it is one."""
        body = self._client.get(path)
        if body is None:
            self._take_directory(path)
        elif self._is_listing(path, body):
            self._take_names(path, names_in(body))
        else:
            self._take_text(path, body)

    def _take_text(self, path, body):
        try:
            text = body.decode()
        except UnicodeDecodeError:
            self._note(path, "is not text")
            return
        if not SECRET_TEXT.search(text):
            self.documents[path] = body
        elif field_of(json_value(text), "AccessKeyId"):
            self.documents[path] = None
        else:
            self._note(path, "contains a secret")

    def _take_user_data(self):
        content = self._client.get("/latest/user-data")
        if content is not None:
            self.documents["/latest/user-data"] = content

    def _listing(self, path):
        """Return the names in a directory; none if it is missing, or has credentials instead."""
        body = self._client.get(path + "/")
        if body is None:
            body = self._client.get(path) or b""
        if SECRET_TEXT.search(body.decode("latin-1")):
            self._note(path, "contains a secret")
            return []
        return names_in(body)

    def _is_listing(self, path, body):
        """Tell whether a value is a listing, where no slash marks directories.

        Then there is something at what it names, and not the same as everywhere.
        """
        names = names_in(body)
        if self._tells_directories or not names or not all(map(LISTED_NAME.fullmatch, names)):
            return False
        if path in KNOWN_DIRECTORIES or CREDENTIALS_DIRECTORY.search(path + "/"):
            return True
        return self._client.look_at(path + "/" + names[0]) not in (None, body)

    def _leave_out_what_is_a_directory(self):
        """Let a directory win over a value at the same path."""
        for path in list(self.documents):
            for parent in parents_of(path):
                if parent != PUBLIC_KEYS:
                    self.documents.pop(parent, None)

    def _note(self, path, words):
        self.notes.append("%s %s: left out" % (escaped(path, MAX_LOGGED_LINE), words))


def parents_of(path: str) -> List[str]:
    """List the directories above a path."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(2, len(parts))]


def names_in(body: bytes) -> List[str]:
    """Return the names in a listing."""
    return [name for name in body.decode("utf-8", "replace").split("\n") if name]


def json_value(text: str) -> Any:
    """Return the value of a JSON document; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def facts_in(found: Dict[str, Optional[bytes]], now: int) -> Texts:
    """Return the facts of an instance for which the configuration has keys."""
    content = found.get("/latest/user-data")
    texts = {path: body.decode() for path, body in found.items()
             if body is not None and path != "/latest/user-data"}
    sections = {"instance": {}}
    add_instance(sections, texts)
    add_interfaces(sections, texts)
    add_credentials(sections, found)
    add_tags(sections, texts)
    add_user_data(sections, content)
    add_events(sections, texts, now)
    return sections


def add_setting(sections: Texts, section: str, key: str, text: str) -> None:
    """Add a key, if the configuration takes it with this text."""
    with contextlib.suppress(ConfigError):
        checked_value(section, key, text, SETTINGS[kind_of(section)])
        if ini_value(text) is not None and ini_key(key):
            sections.setdefault(section, {})[key] = text


def add_fact(sections: Texts, section: str, key: str, texts: dict, path: str) -> None:
    """Add the fact that is served at a path, if it is."""
    if path in texts:
        text = texts[path]
        if key in LISTS:
            text = comma_list(text.split("\n"))
        add_setting(sections, section, key, text)


def comma_list(items: List[str]) -> str:
    """Write what `comma_separated` reads."""
    written = []
    for item in items:
        if "," in item or '"' in item:
            item = '"%s"' % item.replace('"', '""')
        written.append(item)
    return ", ".join(written)


def add_instance(sections: Texts, texts: dict) -> None:
    """Add the facts of [instance] but those of its interface."""
    for key, path in INSTANCE_PATHS.items():
        add_fact(sections, "instance", key, texts, META_DATA + path)
    document = json_value(texts.get(IDENTITY_DOCUMENT, ""))
    for key, field in DOCUMENT_FIELDS.items():
        add_field(sections, key, document, field)
    add_account(sections, texts)
    add_volumes(sections, texts)
    add_public_keys(sections, texts)
    profile = json_value(texts.get(META_DATA + "iam/info", ""))
    add_field(sections, "instance-profile", profile, "InstanceProfileArn")
    add_field(sections, "instance-profile-id", profile, "InstanceProfileId")


def add_field(sections: Texts, key: str, document: Any, field: str) -> None:
    """Add the fact that is a field of a JSON document, if it is there."""
    if field_of(document, field):
        add_setting(sections, "instance", key, field_of(document, field))


def field_of(document: Any, field: str) -> str:
    """Return a field of a JSON document: a text, or a list of texts with commas; else ""."""
    value = document.get(field) if isinstance(document, dict) else ""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return comma_list(value)
    return value if isinstance(value, str) else ""


def add_account(sections: Texts, texts: dict) -> None:
    """Find the account elsewhere where there is no identity document."""
    info = json_value(texts.get(META_DATA + "identity-credentials/ec2/info", ""))
    owners = [field_of(info, "AccountId")]
    owners += [text for path, text in texts.items() if path.endswith("/owner-id")]
    for owner in owners:
        if owner and not sections["instance"].get("account-id"):
            add_setting(sections, "instance", "account-id", owner)


def add_volumes(sections: Texts, texts: dict) -> None:
    """Add the volumes of the block device mapping."""
    for kind in ("ebs", "ephemeral"):
        volumes = []
        for path in texts:
            match = re.fullmatch("%sblock-device-mapping/(%s[0-9]+)" % (META_DATA, kind), path)
            if match:
                volumes.append("%s=%s" % (match.group(1), texts[path]))
        if volumes:
            add_setting(sections, "instance", kind + "-volumes", ", ".join(volumes))


def add_public_keys(sections: Texts, texts: dict) -> None:
    """Add the public keys, and the name of the first."""
    keys = []
    while "%s/%d/openssh-key" % (PUBLIC_KEYS, len(keys)) in texts:
        keys.append(texts["%s/%d/openssh-key" % (PUBLIC_KEYS, len(keys))].rstrip("\n"))
    if keys:
        add_setting(sections, "instance", "public-key", "\n".join(keys))
    number, _, name = texts.get(PUBLIC_KEYS, "").partition("\n")[0].partition("=")
    if number == "0":
        add_setting(sections, "instance", "key-name", name)


def add_interfaces(sections: Texts, texts: dict) -> None:
    """Add the network interfaces; the first one belongs to [instance]."""
    for key in NAMES_WITHOUT_INTERFACES:
        add_fact(sections, "instance", key, texts, META_DATA + key)
    for number, mac in enumerate(macs_in(texts)):
        section = "interface eth%d" % number if number else "instance"
        add_setting(sections, section, "mac", mac)
        for key in SETTINGS[kind_of(section)]:
            if key in INTERFACE_SETTINGS or key == "device-number":
                path = "%s%s/%s" % (INTERFACES, mac, INTERFACE_NAMES.get(key, key))
                add_fact(sections, section, key, texts, path)
        for key in OMISSIBLE:
            sections[section].setdefault(key, "")


def macs_in(texts: dict) -> List[str]:
    """List the MACs of the interfaces: that of the instance first, then by card and device."""
    ranks = {}
    for path in texts:
        match = re.fullmatch(INTERFACES + "(([0-9a-f]{2}:){5}[0-9a-f]{2})/.*", path)
        if match:
            mac = match.group(1)
            below = INTERFACES + mac
            numbers = [texts.get(below + "/network-card", ""), texts.get(below + "/device-number")]
            is_another = mac != texts.get(META_DATA + "mac")
            ranks[mac] = is_another, [(number or "0").zfill(3) for number in numbers], mac
    return sorted(ranks, key=ranks.get)


def add_credentials(sections: Texts, found: dict) -> None:
    """Add the name of the role of the instance, or that there is none."""
    below = META_DATA + "iam/security-credentials/"
    roles = sorted(path[len(below):] for path in found if path.startswith(below))
    role = next(filter(ROLE_NAME.fullmatch, roles), "")
    sections["credentials"] = {"role": role}
    if role and META_DATA + "iam/security-credentials-extended/" + role in found:
        sections["credentials"]["extended"] = "yes"


def add_tags(sections: Texts, texts: dict) -> None:
    """Add the tags, in the order of tag-sets/instance, and that they are enabled."""
    below = META_DATA + "tags/instance/"
    tags = {path[len(below):]: text for path, text in texts.items() if path.startswith(below)}
    ordered = json_value(texts.get(META_DATA + "tag-sets/instance", ""))
    if isinstance(ordered, dict) and set(ordered) == set(tags):
        tags = {key: tags[key] for key in ordered}
    for key, text in tags.items():
        add_setting(sections, "tags", key, text)
    if tags or ordered is not None:
        sections["metadata-options"] = {"instance-metadata-tags": "enabled"}


def add_user_data(sections: Texts, content: Optional[bytes]) -> None:
    """Add the user data: as text if an INI file can have it, else in base64."""
    if not content:
        return
    with contextlib.suppress(UnicodeDecodeError):
        if ini_value(content.decode()) is not None:
            sections["user-data"] = {"text": content.decode()}
            return
    sections["user-data"] = {"base64": base64_lines(content)}


def add_events(sections: Texts, texts: dict, now: int) -> None:
    """Add the events that are served, as ones that have begun.

    Not scheduled maintenance: an id of EC2 follows from nothing.
    """
    state = texts.get(META_DATA + "autoscaling/target-lifecycle-state", "")
    notice = json_value(texts.get(META_DATA + "spot/instance-action", ""))
    rebalance = json_value(texts.get(META_DATA + "events/recommendations/rebalance", ""))
    with contextlib.suppress(ValueError):
        at = timestamp(field_of(notice, "time"))
        action = field_of(notice, "action")
        add_setting(sections, "events", "spot-interruption", "%s %s %s" % (
            utc(min(now, at - SPOT_NOTICE)), action, utc(at)))
    with contextlib.suppress(ValueError):
        at = timestamp(field_of(rebalance, "noticeTime"))
        add_setting(sections, "events", "rebalance-recommendation", "%s %s" % (
            utc(min(now, at)), utc(at)))
    if state:
        add_setting(sections, "events", "target-lifecycle-state", state)


def drop_what_is_refused(sections: Texts, now: float) -> None:
    """Drop facts that contradict each other. Raises CaptureError where that does not help."""
    while True:
        try:
            served_by(sections, now)
            return
        except ConfigError as error:
            if error.key not in sections.get(error.section, ()):
                raise CaptureError("the facts of the instance contradict each other: %s" % (
                    str(error).splitlines()[0]))
            del sections[error.section][error.key]


def leave_out_what_follows(sections: Texts, now: float) -> None:
    """Leave out facts, also empty ones, that follow from the others."""
    served = served_by(sections, now)
    for settings in sections.values():
        for key in (*DERIVED, *OMISSIBLE):
            if key in DERIVED or settings.get(key) == "":
                text = settings.pop(key, None)
                if text is not None and served_by(sections, now) != served:
                    settings[key] = text


def served_by(sections: Texts, now: float) -> Dict[str, Optional[bytes]]:
    """Render what a configuration serves: {path: bytes}, None for credentials and signatures.

    Raises ConfigError.
    """
    config = load_config([ConfigText(ini_text(sections))], environ={})
    credentials = make_credentials(config, warn, None)
    metadata = MetadataService(config, credentials, None, "captured", clock=lambda: now)
    served = {}
    for path in metadata.paths():
        document = metadata.find(path)
        if path.startswith("/latest/"):
            served[path] = document.body if isinstance(document, Document) else None
    return served


def add_differences(sections: Texts, found: dict, now: float) -> None:
    """Write into [metadata] what was found and does not follow from the facts."""
    served = served_by(sections, now)
    present = set(found)
    for path in found:
        present.update(parents_of(path))
    sections["metadata"] = {}
    for path in served:
        if path not in present:
            add_value(sections, missing_part(path, present), "")
        elif path not in found and path not in LISTING_ROWS:  # a directory there, a value here
            add_value(sections, path, "")
    for path, body in found.items():
        if path in served and is_same(body, served[path]) or path in SIGNATURES_OF_DOCUMENT:
            continue
        if body is None:
            add_role(sections, path)
        elif path != "/latest/user-data" or not body:
            add_value(sections, path, quoted(body.decode()))


def missing_part(path: str, present: Set[str]) -> str:
    """Return the uppermost directory of a path that does not exist, or the path itself."""
    return next((part for part in parents_of(path)[1:] if part not in present), path)


def is_same(one: Optional[bytes], other: Optional[bytes]) -> bool:
    """Tell whether two documents are the same, but for blanks in JSON and for LastUpdated."""
    if one is None or other is None:
        return one is other
    texts = [with_last_updated(body.decode("latin-1"), 0) for body in (one, other)]
    values = list(map(json_value, texts))
    return texts[0] == texts[1] or isinstance(values[0], (dict, list)) and values[0] == values[1]


def add_value(sections: Texts, path: str, text: str) -> None:
    """Add a path to [metadata], if its keys can have it."""
    for key in (short_path(path), path):
        with contextlib.suppress(ValueError):
            if metadata_key(key) == path and ini_key(key):
                sections["metadata"][key] = text
                return


def add_role(sections: Texts, path: str) -> None:
    """Add a role whose credentials are served at a path."""
    name = path.rpartition("/")[2]
    if not ROLE_NAME.fullmatch(name):
        name = "Captured"
    section, number = "role " + name, 2
    while section in sections or name == sections["credentials"]["role"]:
        section, number = "role %s-%d" % (name[:60], number), number + 1
        name = section.partition(" ")[2]
    sections[section] = {"path": comma_list([path])}


def differences(sections: Texts, found: dict, now: float) -> List[str]:
    """Say where a configuration serves something else than was found."""
    served, notes = served_by(sections, now), []
    for path in sorted({*found, *served}):
        is_both = path in found and path in served
        if is_both and is_same(found[path], served[path]) or path in SIGNATURES_OF_DOCUMENT:
            continue
        words = "is served here, but not there"
        if path in found:
            words = "cannot be written in a configuration: left out"
        notes.append("%s %s" % (path, words))
    return notes


def quoted(text: str) -> str:
    """Write a value of [metadata]: as it is if an INI file can have it, else as a JSON string."""
    if text and ini_value(text) is not None and unquoted(text) == text:
        return text
    return json.dumps(text)


# ---------------------------------------------------------------- who has asked ---------------

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"

# The line of a request; see Log. Behind the user agent of a whole line there is no second time: a
# line that was cut off, when the power failed, goes on with the next one.
LOGGED = re.compile(
    r'(?P<time>%s) (?P<peer>[0-9a-f.:]+(?:%%[^ "]+)?) "(?P<line>[^"]*)" (?P<status>\d+) \d+ '
    r'\d+\.\dms "(?P<agent>[^"]*)"(?!.*%s)(?: (?P<version>v[12])(?: user=(?P<user>[^ "]+))?)?'
    r'(?: [^"]*)?\n' % (STAMP, STAMP))
LOGGED_TIME = re.compile(STAMP + " ")
LOGGED_GET = re.compile(r"GET (?:http://[^/?]*)?(\S+)(?: HTTP/1\.\d| \(\d+ more\))", re.I)
IMDS_CREDENTIALS = re.compile(
    "/latest/meta-data/(?:iam/security-credentials(?:-extended)?"
    "|identity-credentials/ec2/security-credentials)/[^/]+")

CONTAINER = "container"  # in the place of a version: such credentials need no session token
VERSION_ORDER = ("v1", None, CONTAINER, "v2")  # of the table: first who has something to do
LOG_CLIENTS_REMEDY = "service fake-metadata set server.log-clients yes"


class Client(NamedTuple):
    """Who asked: a user of this box, or an address; neither for all that are beyond a limit."""

    user: Optional[str]
    address: Optional[str]

    def __str__(self):
        if self.user is not None:
            return "user " + self.user
        return self.address or "(others)"


class Tally:
    """How often something was asked, and when first and last."""

    def __init__(self):
        self.count = 0
        self.first = self.last = None

    def add(self, moment: str) -> None:
        """Count a request. The files of a log may come in any order."""
        self.count += 1
        self.first = min(self.first or moment, moment)
        self.last = max(self.last or moment, moment)


class CredentialsAsked:
    """The clients that have asked for credentials and got them, by the lines of a log.

    A client's user agent is its own word, the user is the kernel's: so however many user agents
    one client has, it hides nobody else.
    """

    def __init__(self):
        self.whole = Tally()  # of all lines of the log
        self._clients = {}  # Client -> {user agent: {version: Tally}}

    def add(self, line: str) -> None:
        """Take a line of the log, with its end."""
        stamp = LOGGED_TIME.match(line)
        if not stamp:
            return
        self.whole.add(stamp.group().strip())
        match = LOGGED.fullmatch(line)
        if match and match["status"] == "200":
            self._add_request(match)

    def _add_request(self, match):
        version = version_asked(match["line"], match["version"])
        if version == "":
            return
        client = Client(None, plain_address([match["peer"]]))
        if match["user"] not in (None, "?"):
            client = Client(match["user"], None)
        agents = self._among(self._clients, client, MAX_CLIENTS, Client(None, None))
        tallies = self._among(agents, match["agent"][:MAX_AGENT], MAX_AGENTS, None)
        tallies.setdefault(version, Tally()).add(match["time"])

    @staticmethod
    def _among(table, key, limit, rest):
        """Return the entry of a key in a table, or that of `rest` if the table is full."""
        if key not in table and len(table) >= limit:
            key = rest
        return table.setdefault(key, {})

    def rows(self) -> List[Tuple[Client, Optional[str], Optional[str], Tally]]:
        """Return client, user agent, version and tally of each; users of IMDSv1 first."""
        rows = [(client, agent, version, tally) for client, agents in self._clients.items()
                for agent, tallies in agents.items() for version, tally in tallies.items()]
        return sorted(rows, key=lambda row: (
            VERSION_ORDER.index(row[2]), -row[3].count, str(row[0]), row[1] or ""))

    def would_break(self) -> Tuple[int, int]:
        """Count who would get no credentials with http-tokens = required, and who asked at all.

        Each user agent of a client counts; not those of which the log does not tell the version.
        """
        versions = [set(tallies) - {None} for agents in self._clients.values()
                    for tallies in agents.values()]
        return sum("v1" in known for known in versions), sum(map(bool, versions))

    def as_json(self) -> str:
        """Write one JSON document."""
        breaking, known = self.would_break()
        clients = [{
            "user": client.user, "address": client.address, "user-agent": agent,
            "version": version, "count": tally.count, "first": tally.first, "last": tally.last,
        } for client, agent, version, tally in self.rows()]
        return json.dumps({
            "log": {"first": self.whole.first, "last": self.whole.last},
            "would-break": breaking, "of": known, "clients": clients,
        }, indent=2) + "\n"

    def as_table(self) -> str:
        """Write a table for people, and what follows from it."""
        rows = self.rows()
        if not rows:
            return self._nobody()
        lines = [["how", "times", "first", "last", "who", "user agent"]]
        lines += [[version or "?", str(tally.count), tally.first, tally.last, str(client),
                   shown_agent(agent)] for client, agent, version, tally in rows]
        return "".join(printable(line) + "\n" for line in columns(lines) + self._notes(rows))

    def _nobody(self):
        if not self.whole.count:
            return "nobody has asked for credentials: the log is empty\n"
        return "nobody has asked for credentials since %s, where the log begins\n" % (
            self.whole.first)

    def _notes(self, rows):
        """Say below the table what its marks mean, and who would break."""
        notes = []
        if any(version == CONTAINER for _, _, version, _ in rows):
            notes.append("%s: with http-tokens = required it needs an authorization-token, no "
                         "session token" % CONTAINER)
        unknown = sum(tally.count for _, _, version, tally in rows if version is None)
        if unknown:
            requests = "1 request was" if unknown == 1 else "%d requests were" % unknown
            notes += ["?: %s logged without v1 or v2; to log it from now on:" % requests,
                      "   " + LOG_CLIENTS_REMEDY]
        return [""] + notes + ["%d of %d would break with http-tokens = required"
                               % self.would_break()]


def version_asked(line: str, version: Optional[str]) -> Optional[str]:
    """Return the version of a logged request for credentials; "" if it is for something else."""
    match = LOGGED_GET.fullmatch(line)
    path = canonical_path(match.group(1)) if match else ""
    if CONTAINER_PATH.fullmatch(path):
        return CONTAINER
    return version if IMDS_CREDENTIALS.fullmatch(path) else ""


def shown_agent(agent: Optional[str]) -> str:
    """Return a user agent for the table."""
    if agent is None:
        return "(other user agents)"
    if len(agent) > MAX_SHOWN_AGENT:
        return agent[:MAX_SHOWN_AGENT] + "..."
    return agent or "(no user agent)"


def columns(lines: List[List[str]]) -> List[str]:
    """Write lines of cells below each other; the second column, of numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join([cells[0].ljust(widths[0]), cells[1].rjust(widths[1])] + [
        cell.ljust(width) for cell, width in zip(cells[2:], widths[2:])]).rstrip()
        for cells in lines]


def log_lines(path: str) -> Iterator[str]:
    """Yield the lines of a log, compressed or not, that are not too long; none if there is none.

    Raises OSError if it cannot be read.
    """
    open_file = gzip.open if path.endswith(".gz") else open
    try:
        with open_file(path, "rb") as file:
            is_whole = True
            for line in iter(functools.partial(file.readline, MAX_READ_LINE), b""):
                if is_whole:
                    yield line.decode("utf-8", "replace")
                is_whole = line.endswith(b"\n")
    except FileNotFoundError:  # it has not been rotated so often yet
        pass
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EIO, str(error), path)


# ---------------------------------------------------------------- main ------------------------

def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="fake_metadata.py", allow_abbrev=False,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=32),
        usage="%(prog)s [OPTIONS] [HOST | HOST:PORT]\n"
              "       %(prog)s [OPTIONS] -- COMMAND [ARG...]",
        description="Fake EC2 instance metadata service for a development box. With COMMAND "
                    "it serves on a free port until COMMAND ends.")
    parser.add_argument("address", metavar="HOST | HOST:PORT", nargs="?",
                        help="where to listen (default: 127.0.0.1:8000)")
    parser.add_argument("--config", metavar="FILE", type=file_name, action="append", default=[],
                        help="read FILE (-: standard input); repeatable, the "
                             "later FILE wins, key by key")
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[],
                        help="set a key, over all files; repeatable")
    parser.add_argument("--log", metavar="FILE", type=file_name,
                        help="log to FILE instead of stderr")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--test-config", action="store_true",
                        help="check the configuration and exit with 0 or 1")
    action.add_argument("--dump", action="store_true",
                        help="print every path and the value that it serves")
    action.add_argument("--capture", metavar="URL",
                        help="print the instance at URL as a configuration")
    action.add_argument("--certificate", action="store_true",
                        help="print the certificate that verifies signatures")
    parser.add_argument("--version", action="version", version="fake-metadata " + VERSION,
                        help="print the version and exit")
    action.add_argument("--who", metavar="LOG", nargs="+",
                        help="list the clients that got credentials, from logs")
    parser.add_argument("--json", action="store_true", help="with --who: print JSON")
    action.add_argument("--overlay", metavar=("FILE", "VERB"), nargs="+",
                        help="for service fake-metadata set, unset and show")
    return parser


def file_name(text: str) -> str:
    """Refuse an empty name: a variable that is not set must not drop the configuration."""
    if not text:
        raise argparse.ArgumentTypeError("empty, not the name of a file")
    return text


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command line; return its exit code."""
    open_standard_files()
    arguments, command = split_command_line(sys.argv[1:] if argv is None else argv)
    options = parse_arguments(arguments, command)
    try:
        return run(options, command)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (ConfigError, SourceError, ValueError, OSError) as error:
        for line in explanation_of(error).splitlines():
            warn(line)
        code = getattr(error, "errno", None) or errno.EINVAL
        if not command:
            notify("ERRNO=%d" % abs(code))  # those of a resolver are negative
        if code in TEMPORARY_ERRORS:
            return os.EX_TEMPFAIL
        return 1


def split_command_line(argv: List[str]) -> Tuple[List[str], Optional[List[str]]]:
    """Split a command line at the first "--"; without one there is no COMMAND."""
    if "--" not in argv:
        return argv, None
    at = argv.index("--")
    return argv[:at], argv[at + 1:]


def parse_arguments(arguments: List[str], command: Optional[List[str]]) -> argparse.Namespace:
    """Parse what precedes COMMAND; exit with 2 where the two cannot be combined."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.address and not rest[0].startswith("-"):
        parser.error("to run a command, put -- in front of it: %s -- %s" % (
            parser.prog, " ".join([options.address] + rest)))
    if rest:
        parser.error("unrecognized arguments: " + " ".join(rest))
    if options.capture is not None and (options.address or options.config or options.set):
        parser.error("--capture takes no HOST, --config or --set")
    if options.json and not options.who:
        parser.error("--json needs --who")
    if command is None:
        return options
    if not command:
        parser.error("COMMAND is missing after --")
    if options.address:
        parser.error("COMMAND gets a free port; leave out HOST")
    if (options.test_config or options.dump or options.certificate or options.overlay
            or options.who or options.capture is not None):
        parser.error("COMMAND cannot be combined with an option that prints something")
    return options


def run(options: argparse.Namespace, command: Optional[List[str]]) -> int:
    """Do what a command line asks for; return the exit code."""
    if command:
        return Command(command).run(options)
    if options.test_config:
        return check_config(options)
    if options.dump:
        return print_dump(options)
    if options.certificate:
        return print_certificate(options)
    if options.overlay:
        return print_overlay(options)
    if options.who:
        return print_who(options)
    if options.capture is not None:
        return print_capture(options)
    # Log and configuration are read before there are handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, EARLY_SIGNALS)
    Daemon(options).run()
    return 0


def config_reader(
    options: argparse.Namespace, environ: Dict[str, str] = os.environ
) -> Callable[[], Configuration]:
    """Return a function that reads the configuration of a command line anew."""
    files = [ConfigFile(path) for path in options.config]
    return functools.partial(load_config, files, options.set, environ)


def address_option(options: argparse.Namespace) -> Optional[Tuple[str, int]]:
    """Return the address of a command line, if there is one.

    Raises ValueError without its text, which may be a secret, after a --set without "=".
    """
    if options.address is None:
        return None
    try:
        return bind_address(options.address)
    except ValueError as error:
        raise ValueError("HOST: %s" % error)


def check_config(options: argparse.Namespace) -> int:
    """Check everything that a start would check; warn of what does nothing."""
    service = Service(config_reader(options), address_option(options), os.devnull)
    for words in idle_settings(service.config, service.server.service):
        warn(words)
    service.close()
    print("%s: configuration ok" % (", ".join(options.config) or "no file"))
    for words in service.server.service.clients_in_words():
        print(words)
    return 0


def print_overlay(options: argparse.Namespace) -> int:
    """Show or change what is set until the next boot, and say what has changed.

    With RUNTIME_DIRECTORY in the environment `show` also says what is served.
    """
    path, verb, *names = options.overlay + [""]
    if verb == "show":
        lines = overlay_in_words(path, options.config)
        state = read_state(os.environ.get("RUNTIME_DIRECTORY"))
        if state["starts"]:
            lines += state_in_words(state)
    elif verb in ("set", "unset"):
        text = read_text() if verb == "set" else ""
        lines = [change_overlay(path, options.config, verb, names[0], text)]
    else:
        raise ConfigError(
            "--overlay: write FILE set SECTION.KEY, FILE unset SECTION.KEY or FILE show")
    write_out("".join(printable(line) + "\n" for line in lines))
    return 0


def print_who(options: argparse.Namespace) -> int:
    """Print who has asked for credentials, from logs; return 1 if one cannot be read."""
    asked, code = CredentialsAsked(), 0
    for path in options.who:
        try:
            for line in log_lines(path):
                asked.add(line)
        except OSError as error:
            warn("cannot read %s: %s" % (path, error.strerror or error))
            code = 1
    write_out(asked.as_json() if options.json else asked.as_table())
    return code


def print_certificate(options: argparse.Namespace) -> int:
    """Print the certificate with which the signatures of the identity document verify.

    That of the configuration, or the kept one: as root on a box, the service's.
    """
    config = config_reader(options)()
    with Mistakes(config.places) as mistakes:
        identity = mistakes.attempt(configured_identity, config["instance-identity"])
    path = identity_path(os.environ)
    if not identity and path:
        kept_identity(path)
        identity = read_identity(path)
    elif not identity:
        path = BOX_IDENTITY
        identity = awaited_identity(path)
    if not identity:
        raise ConfigError("no certificate in %s; on a box: sudo service fake-metadata start, then "
                          "run this as root; elsewhere: set STATE_DIRECTORY as for the service"
                          % path)
    write_out(pem("CERTIFICATE", identity[1]))
    return 0


def awaited_identity(path: str) -> Optional[Tuple[RSAKey, bytes]]:
    """Read key and certificate, which a service that has just started may still be making."""
    give_up = time.monotonic() + SIGNATURES_PATIENCE
    while os.access(os.path.dirname(path), os.R_OK | os.X_OK) and time.monotonic() < give_up:
        identity = read_identity(path)
        if identity:
            return identity
        time.sleep(DOCUMENT_POLL)
    return None


def print_dump(options: argparse.Namespace) -> int:
    """Print every path and value as they would be served; 1 if credentials are missing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    service = Service(config_reader(options), address_option(options), os.devnull, complain=warn)
    try:
        write_out(service.dump() + "\n")
        return 1 if service.trouble() else 0
    finally:
        service.close()


def write_out(text: str) -> None:
    """Write to stdout; be quiet where nobody reads on, as other programs are."""
    with contextlib.suppress(BrokenPipeError):
        with open(1, "wb", closefd=False) as stdout:  # sys.stdout is None where it was closed
            stdout.write(text.encode())


def open_standard_files() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: a socket could take its place."""
    while True:
        file = os.open(os.devnull, os.O_RDWR)
        if file > 2:
            os.close(file)
            return


if __name__ == "__main__":
    sys.exit(main())
