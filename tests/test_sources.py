"""Who sees which instance, and gets which role: by the address and the user that asks."""
import concurrent.futures
import json
import re
import time
import tracemalloc

import pytest

import fake_metadata
from conversation import converse
from service import CREDENTIALS, wait_for
from wire import get

META = "/latest/meta-data/"
TOKENS = fake_metadata.SessionTokens(b"key")
ROLES = META + "iam/security-credentials"
FLEET = "[instance fleet]\nfrom = 172.18.0.0/16\neach = yes\n"
WEB = "[instance web]\nfrom = 10.0.3.7, 10.0.4.0/24\n"


def seen(metadata, path, peer="127.0.0.1", user=None):
    """Return what a client sees at a path; None for 404."""
    found = metadata.seen_by(peer, lambda: user).find(path)
    return found and found.current().body.decode()


def facts(metadata, peer, user=None):
    """Return what a client sees at all paths that have no times in them."""
    tree = metadata.seen_by(peer, lambda: user)
    return {path: seen(metadata, path, peer, user) for path in tree.paths()
            if not re.search("credentials|iam/info|/pkcs7|/rsa2048|/signature|/v1|/v2|/role|/creds",
                             path)}


# ---------------------------------------------------------------- roles

# Configuration -> (address, user) -> role.
ROLE_CASES = [
    ("[role A]\nusers = deploy, ci\n", [
        ("127.0.0.1", "deploy", "A"), ("127.0.0.1", "ci", "A"),
        ("127.0.0.1", "root", "BaseIAMRole"),
        ("127.0.0.1", None, "BaseIAMRole")]),
    ("[role A]\nfrom = 172.18.0.0/16, 10.0.3.7, fd00::/8\n", [
        ("172.18.9.9", None, "A"), ("10.0.3.7", None, "A"), ("10.0.3.8", None, "BaseIAMRole"),
        ("fd00::7", None, "A"), ("fe80::7%eth0", None, "BaseIAMRole"),
        ("127.0.0.1", "root", "BaseIAMRole")]),
    ("[role A]\nusers = ci\nfrom = 127.0.0.1\n", [
        ("127.0.0.1", "ci", "A"), ("127.0.0.2", "ci", "BaseIAMRole"),
        ("127.0.0.1", "root", "BaseIAMRole")]),
    ("[role A]\nusers = ci\n[role B]\nusers = ci, root\n[role C]\nfrom = 127.0.0.0/8\n", [
        ("127.0.0.1", "ci", "A"), ("127.0.0.1", "root", "B"), ("127.0.0.1", None, "C"),
        ("10.0.0.1", None, "BaseIAMRole")]),
    ("[credentials]\nrole =\n[role A]\nusers = ci\n", [
        ("127.0.0.1", "ci", "A"), ("127.0.0.1", "root", None)]),
]


@pytest.mark.parametrize("text, cases", ROLE_CASES,
                         ids=["users", "from", "both", "first match", "no other role"])
def test_role(make_metadata, text, cases):
    """The first role that a client may have is the instance's role for it, and the only one."""
    metadata = make_metadata(text)
    for peer, user, role in cases:
        assert seen(metadata, ROLES, peer, user) == role
        assert (seen(metadata, "%s/%s" % (ROLES, role), peer, user) is None) == (role is None)
        info = seen(metadata, META + "iam/info", peer, user)
        assert (info and json.loads(info)["InstanceProfileArn"].rpartition("/")[2]) == role


def test_role_of_others(make_metadata):
    """A role that is for some is nowhere for the others, not for containers either."""
    metadata = make_metadata("[role A]\nusers = ci\npath = /a\n[role B]\n")

    for path in (ROLES + "/A", "/role/A", "/v2/credentials/A", "/a"):
        assert seen(metadata, path, user="root") is None
    for path in ("/role/A", "/v2/credentials/A", "/a", "/role/B", "/role/BaseIAMRole"):
        assert seen(metadata, path, user="ci")
    assert seen(metadata, "/role/B", user="root")


def test_user_is_not_asked_for_in_vain(make_metadata):
    """Who the user is is only asked where it counts."""
    def user():
        raise AssertionError("asked")
    make_metadata("").seen_by("127.0.0.1", user)
    make_metadata("[role A]\nfrom = 127.0.0.1\n").seen_by("127.0.0.1", user)
    make_metadata("[role A]\nusers = ci\nfrom = 10.0.0.1\n").seen_by("127.0.0.1", user)


def test_profile_of_a_role(make_metadata):
    """The instance profile of [instance] is that of its role, not of another one."""
    metadata = make_metadata("[instance]\ninstance-profile = mine\n[role A]\nusers = ci\n")

    assert "/mine" in seen(metadata, META + "iam/info")
    assert "/A" in seen(metadata, META + "iam/info", user="ci")


# ---------------------------------------------------------------- instances

def test_instance_of_others(make_metadata):
    """Who is not named sees [instance]."""
    with_rules, without = make_metadata(WEB + FLEET), make_metadata("")

    assert facts(with_rules, "127.0.0.1") == facts(without, "127.0.0.1")


def test_another_instance(make_metadata):
    """Another instance has identities of its own; what is none it shares."""
    metadata = make_metadata(
        "[instance]\ninstance-type = m7g.large\navailability-zone = eu-central-1b\n"
        "instance-id = i-0123456789abcdef0\nlocal-ipv4 = 10.0.0.25\nmac = 0e:ff:d5:40:fe:7d\n"
        "[metadata-options]\ninstance-metadata-tags = enabled\n[tags]\nName = all\nTeam = a\n"
        + WEB + "ami-id = ami-0123456789abcdef1\n[tags web]\nName = web\n"
        "[metadata web]\nx = y\n[user-data web]\ntext = hello\n")
    usual, web = facts(metadata, "127.0.0.1"), facts(metadata, "10.0.3.7")

    for key in ("instance-id", "local-ipv4", "mac", "public-ipv4", "local-hostname", "hostname",
                "public-hostname", "reservation-id"):
        assert web[META + key] != usual[META + key]
    for key in ("instance-type", "placement/availability-zone", "tags/instance/Team"):
        assert web[META + key] == usual[META + key]
    assert web[META + "ami-id"] == "ami-0123456789abcdef1"
    assert web[META + "tags/instance/Name"] == "web"
    assert (web[META + "x"], web["/latest/user-data"]) == ("y", "hello")
    assert META + "x" not in usual and usual.get("/latest/user-data") is None
    document = json.loads(web["/latest/dynamic/instance-identity/document"])
    assert document["instanceId"] == web[META + "instance-id"]
    assert document["privateIp"] == web[META + "local-ipv4"]
    assert facts(metadata, "10.0.4.9") == web


@pytest.mark.parametrize("peer, key, expected", [
    ("172.18.3.4", "local-ipv4", "172.18.3.4"),
    ("172.18.3.4", "local-hostname", "ip-172-18-3-4.ec2.internal"),
    ("10.1.1.1", "local-ipv4", "10.1.1.1"),
    ("fd00::7", "ipv6", "fd00::7")], ids=["fleet", "its name", "a single address", "IPv6"])
def test_address_of_an_instance(make_metadata, peer, key, expected):
    """The address from which an instance asks is its own."""
    metadata = make_metadata(FLEET + "[instance one]\nfrom = 10.1.1.1\n"
                             "[instance six]\nfrom = fd00::/64\neach = yes\n")

    assert seen(metadata, META + key, peer) == expected


def test_fleet(make_metadata):
    """Each of a fleet is another instance in one network, the same when it asks again."""
    metadata = make_metadata(FLEET)
    peers = ["172.18.%d.%d" % divmod(number, 256) for number in range(1, 1001)]

    first = [facts(metadata, peer) for peer in peers[:200]]
    for key in ("instance-id", "local-ipv4", "public-ipv4", "mac", "reservation-id"):
        values = {seen(metadata, META + key, peer) for peer in peers}
        assert len(values) == 1000
    for key in ("vpc-id", "subnet-id", "owner-id"):
        path = META + "network/interfaces/macs/%s/" + key
        assert len({one[path % one[META + "mac"]] for one in first}) == 1
    metadata.forget()
    assert [facts(metadata, peer) for peer in peers[:200]] == first


@pytest.mark.parametrize("text, same", [
    ("", False), ("local-ipv4 = 172.18.0.9\n", True),
    ("local-ipv4 = 172.18.0.9\nvpc-id = vpc-0123456789abcdef0\n", True)],
    ids=["elsewhere", "same network", "given"])
def test_network_of_an_instance(make_metadata, text, same):
    """An instance in the network of [instance] is in its VPC; else it is in another one."""
    metadata = make_metadata("[instance]\n" + text + FLEET)
    vpcs = []
    for peer in ("127.0.0.1", "172.18.0.5"):
        mac = seen(metadata, META + "mac", peer)
        below = META + "network/interfaces/macs/%s/" % mac
        vpcs.append((seen(metadata, below + "vpc-id", peer),
                     seen(metadata, below + "vpc-ipv4-cidr-block", peer)))

    assert (vpcs[0] == vpcs[1]) == same and (vpcs[0][0] == vpcs[1][0]) == same


def test_instance_in_another_account(make_metadata):
    """An instance of another account has that account's credentials, of every role."""
    metadata = make_metadata(WEB + "account-id = 999999999999\n")
    accounts = [json.loads(seen(metadata, "/v1/credentials", peer))["AccountId"]
                for peer in ("127.0.0.1", "10.0.3.7")]
    keys = [json.loads(seen(metadata, CREDENTIALS, peer))["AccessKeyId"]
            for peer in ("127.0.0.1", "10.0.3.7")]

    assert accounts == ["123456789012", "999999999999"] and keys[0] != keys[1]


def test_credentials_of_one_role_are_one(make_metadata):
    """All instances that have a role have the same credentials of it."""
    metadata = make_metadata(WEB + FLEET)

    assert len({seen(metadata, CREDENTIALS, peer)
                for peer in ("127.0.0.1", "10.0.3.7", "172.18.0.1", "172.18.0.2")}) == 1


def test_role_and_instance(make_metadata):
    """Instance and role are found each by its own rule."""
    metadata = make_metadata(WEB + "[role A]\nfrom = 10.0.3.7\n[role B]\nusers = ci\n")

    assert seen(metadata, ROLES, "10.0.3.7") == "A"
    assert seen(metadata, ROLES, "10.0.4.1") == "BaseIAMRole"
    assert seen(metadata, ROLES, "10.0.4.1", "ci") == "B"
    web = seen(metadata, META + "instance-id", "10.0.4.1")
    assert seen(metadata, META + "instance-id", "10.0.3.7") == web
    assert seen(metadata, META + "instance-id") != web


def test_interface_of_an_instance(make_metadata):
    """A further interface is of all, or of the one that it names."""
    metadata = make_metadata(
        WEB + "[interface eth1]\n[interface eth2]\ninstance = web\n")
    interfaces = META + "network/interfaces/macs"

    assert seen(metadata, interfaces).count("/") == 2
    assert seen(metadata, interfaces, "10.0.3.7").count("/") == 3


def test_events_of_an_instance(make_metadata, clock):
    """[events NAME] is for that one alone, and goes before [events]."""
    metadata = make_metadata(WEB + "[events web]\nspot-interruption = +30s terminate\n"
                             "[events]\nrebalance-recommendation = +10s\n")
    notice, rebalance = META + "spot/instance-action", META + "events/recommendations/rebalance"
    clock.now += 31

    assert seen(metadata, notice) is None and seen(metadata, notice, "10.0.3.7")
    assert seen(metadata, rebalance) and seen(metadata, rebalance, "10.0.3.7")
    assert seen(metadata, META + "instance-life-cycle") == "on-demand"
    assert seen(metadata, META + "instance-life-cycle", "10.0.3.7") == "spot"
    assert [words.partition(":")[0] for words in metadata.news()] == [
        "event rebalance-recommendation", "event spot-interruption of web"]
    assert "spot-interruption of web" in metadata.under_way()["events"]


def test_events_go_on_over_a_reload(make_metadata, clock):
    """An event of an instance keeps its beginning while its text is the same."""
    text = WEB + FLEET + "[events web]\nrebalance-recommendation = +30s\n" \
        "[events fleet]\nrebalance-recommendation = +30s\n"
    former = make_metadata(text)
    clock.now += 20

    again = make_metadata(text.replace("+30s\n[events", "+31s\n[events"), former=former)
    clock.now += 11

    path = META + "events/recommendations/rebalance"
    assert seen(again, path, "10.0.3.7") is None and seen(again, path, "172.18.0.1")


def test_fault_of_an_instance(serve):
    """A fault with an instance strikes who sees it, and nobody else."""
    service = serve("[instance two]\nfrom = 127.0.0.2\n"
                    "[faults]\nout = /latest/* status 503 instance two\n")

    assert from_address(service, "127.0.0.1", META + "mac")[0] == 200
    assert from_address(service, "127.0.0.2", META + "mac")[0] == 503
    wait_for(lambda: "fault out" in service.log(), what="the fault in the log")


# ---------------------------------------------------------------- a service

def from_address(service, source, path):
    """Return status and body of a GET from an address."""
    connection = fake_metadata.http.client.HTTPConnection(
        service.host, service.port, timeout=10, source_address=(source, 0))
    try:
        connection.request("GET", path, headers={
            "X-Forwarded-For": "127.0.0.2", "Forwarded": "for=127.0.0.2"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_fleet_at_once(serve):
    """A hundred addresses that ask at once are a hundred instances."""
    service = serve("[instance fleet]\nfrom = 127.0.1.0/24\neach = yes\n")
    sources = ["127.0.1.%d" % number for number in range(1, 101)]

    def describe(source):
        return tuple(from_address(service, source, META + key)[1]
                     for key in ("local-ipv4", "instance-id", "mac"))
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        fleet = list(pool.map(describe, sources))

    assert [address for address, _, _ in fleet] == sources
    assert all(len(set(facts)) == 100 for facts in zip(*fleet))


def test_reload_switches(serve):
    """A reload changes who sees what, at once."""
    service = serve("[role A]\nfrom = 127.0.0.2\n[instance two]\nfrom = 127.0.0.2\n")
    mine = from_address(service, "127.0.0.1", META + "instance-id")
    assert from_address(service, "127.0.0.1", ROLES)[1] == "BaseIAMRole"
    assert from_address(service, "127.0.0.2", ROLES)[1] == "A"
    assert from_address(service, "127.0.0.2", META + "instance-id") != mine

    service.reload("[role A]\nfrom = 127.0.0.1\n[instance two]\nfrom = 127.0.0.3\n")

    assert from_address(service, "127.0.0.1", ROLES)[1] == "A"
    assert from_address(service, "127.0.0.2", ROLES)[1] == "BaseIAMRole"
    assert from_address(service, "127.0.0.2", META + "instance-id") == mine


def test_forgotten_instances(make_metadata):
    """No more than so many instances are kept; one that was forgotten is the same again."""
    metadata = make_metadata("[instance all]\nfrom = 10.0.0.0/8\neach = yes\n")
    first = seen(metadata, META + "instance-id", "10.0.0.1")
    for number in range(fake_metadata.MAX_INSTANCES + 1):
        metadata.seen_by(str(fake_metadata.ipaddress.ip_address(0x0A000001 + number)), None)

    assert metadata._tree_of.cache_info().currsize == fake_metadata.MAX_INSTANCES
    assert seen(metadata, META + "instance-id", "10.0.0.1") == first


# ---------------------------------------------------------------- the configuration

@pytest.mark.parametrize("text, words", [
    ("[instance web]\n", "[instance web] from: missing"),
    ("[instance web]\nfrom = here\n", "FILE:2: [instance web] from: not an address or block"),
    ("[instance web]\nfrom = 10.0.0.1/16\n", "[instance web] from: not an address or block"),
    ("[instance web]\nfrom = 10.0.0.1\neach = maybe\n", "[instance web] each: "),
    ("[instance web]\nfrom = 10.0.0.1\ninstance-type = big\n", "[instance web] instance-type: "),
    ("[instance web]\nfrom = 10.0.0.1\npublic-key = ssh-rsa AAAA\n", "[instance web] public-key: "),
    ("[role A]\nusers = two words\n", "[role A] users: "),
    ("[role A]\nfrom = 300.1.1.1\n", "[role A] from: "),
    ("[events web]\nrebalance-recommendation = +1s\n", "[events web]: there is no [instance web]"),
    ("[tags web]\nx = y\n", "[tags web]: there is no [instance web]"),
    ("[user-data web]\ntext = y\n", "[user-data web]: there is no [instance web]"),
    ("[interface eth1]\ninstance = web\n", "[interface eth1] instance: there is no [instance web]"),
    ("[faults]\nx = /* reset instance web\n", "[faults] x: there is no [instance web]"),
    ("[faults]\nx = /* reset instance\n", "[faults] x: instance: no name"),
    ("[instance web]\nfrom = 10.0.0.1\n[metadata web]\nami-id/x = 1\n",
     "FILE:3: [metadata web] ami-id: ami-id cannot have a value"),
])
def test_mistake(check, text, words):
    """A mistake is told with its place."""
    code, said = check(text)

    assert (code, words in said) == (1, True), said


def test_who_sees_what_in_words(check):
    """--test-config lists roles and instances with who gets them."""
    code, said = check("[role A]\nusers = ci, root\nfrom = 127.0.0.1\n" + WEB + FLEET)

    assert code == 0
    assert said.splitlines()[1:] == [
        "instance web: for clients from 10.0.3.7/32, 10.0.4.0/24",
        "instance fleet: for each client from 172.18.0.0/16",
        "role A: for users ci, root from 127.0.0.1/32"]


def test_state_lists_who_sees_what(serve, tmp_path):
    """The state has the same, for service fake-metadata show."""
    service = serve("[role A]\nusers = ci\n", env={"RUNTIME_DIRECTORY": str(tmp_path)})
    state = wait_for(lambda: fake_metadata.read_state(str(tmp_path)))

    assert state["clients"] == ["role A: for users ci"]
    assert "  role A: for users ci" in fake_metadata.state_in_words(state)
    assert service.get(ROLES)[2] == "BaseIAMRole"


# ---------------------------------------------------------------- cost

def test_cost_of_many_instances(make_metadata):
    """A request costs with 200 instances and a fleet of 1,000 about what it costs with one.

    Here it is the handler alone, a fourth of a request: the rest is sockets and the kernel.
    """
    many = "".join("[instance i%d]\nfrom = 10.0.0.%d\n" % (n, n) for n in range(200))
    peers = ["172.18.%d.%d" % divmod(number, 256) for number in range(1000)]
    costs = []
    for metadata in (make_metadata(""), make_metadata(many + FLEET)):
        rounds = []
        for _ in range(6):
            began = time.process_time()
            for peer in peers:
                converse(metadata, TOKENS, get(path=META + "mac"), peer=peer)
            rounds.append(time.process_time() - began)
        costs.append(min(rounds))

    assert costs[1] < costs[0] * 2


def test_memory_of_an_instance(make_metadata):
    """An instance that is in use takes 50 kB at most."""
    metadata = make_metadata(FLEET)
    metadata.seen_by("172.18.0.1", None)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(100):
        for path in (META + "mac", CREDENTIALS, ROLES):
            assert seen(metadata, path, "172.18.1.%d" % number)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (after - before) / 100 < 50000
