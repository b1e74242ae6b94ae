"""The instance: every path of a real one, one identity behind all, and values of one's own."""
import json
import os
import re
import socket
import subprocess
import sys

import pytest

import fake_metadata
from conversation import SIGNER
from fake_metadata import box_id
from service import PROGRAM, wait_for

META = "/latest/meta-data/"
DOCUMENT = "/latest/dynamic/instance-identity/document"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ my-key"

# What every instance has, {mac} being that of its interface.
ALWAYS = """
ami-id ami-launch-index ami-manifest-path block-device-mapping/ami block-device-mapping/root
events/maintenance/history events/maintenance/scheduled hostname identity-credentials/ec2/info
identity-credentials/ec2/security-credentials/ec2-instance instance-action instance-id
instance-life-cycle instance-type local-hostname local-ipv4 mac metrics/vhostmd
network/interfaces/macs/{mac}/device-number network/interfaces/macs/{mac}/interface-id
network/interfaces/macs/{mac}/local-hostname network/interfaces/macs/{mac}/local-ipv4s
network/interfaces/macs/{mac}/mac network/interfaces/macs/{mac}/owner-id
network/interfaces/macs/{mac}/security-group-ids network/interfaces/macs/{mac}/security-groups
network/interfaces/macs/{mac}/subnet-id network/interfaces/macs/{mac}/subnet-ipv4-cidr-block
network/interfaces/macs/{mac}/vpc-id network/interfaces/macs/{mac}/vpc-ipv4-cidr-block
network/interfaces/macs/{mac}/vpc-ipv4-cidr-blocks placement/availability-zone
placement/availability-zone-id placement/region profile reservation-id security-groups
services/domain services/partition system
""".split()

# What an instance has without a role, address, key, tag, volume, event of its own.
BARE = "[credentials]\nrole =\n[instance]\npublic-ipv4 =\n"
MAC = "mac = 0e:ff:d5:40:fe:7d\n"
MACS = "network/interfaces/macs/0e:ff:d5:40:fe:7d/"
IPV6 = "[instance]\n%sipv6 = 2001:db8:8:4::2, 2001:db8:8:4::3\n" % MAC
PUBLIC = "[instance]\n%slocal-ipv4 = 10.0.0.5\npublic-ipv4 = 198.51.100.7\n" % MAC
TAGS = "[metadata-options]\ninstance-metadata-tags = enabled\n"

CONDITIONAL = [  # path below meta-data/, a configuration that asks for it, its value or None
    ("ancestor-ami-ids", "[metadata]\nancestor-ami-ids = ami-11111111\n  ami-22222222\n",
     "ami-11111111\nami-22222222"),
    ("autoscaling/target-lifecycle-state", "[events]\ntarget-lifecycle-state = InService\n",
     "InService"),
    ("block-device-mapping/ebs1", "[instance]\nebs-volumes = sdf, sdg\n", "sdf"),
    ("block-device-mapping/ebs2", "[instance]\nebs-volumes = sdf, sdg\n", "sdg"),
    ("block-device-mapping/ephemeral0", "[instance]\nephemeral-volumes = sdb\n", "sdb"),
    ("block-device-mapping/swap", "[metadata]\nblock-device-mapping/swap = sda3\n", "sda3"),
    ("elastic-gpus/associations/egpu-1", "[metadata]\nelastic-gpus/associations/egpu-1 = {}\n",
     "{}"),
    ("elastic-inference/associations/eia-1",
     "[metadata]\nelastic-inference/associations/eia-1 = {}\n", "{}"),
    ("events/recommendations/rebalance", "[events]\nrebalance-recommendation = +0s\n",
     '{"noticeTime": "2026-12-01T08:00:00Z"}'),
    ("hibernation/configured", "[metadata]\nhibernation/configured = true\n", "true"),
    ("iam/info", "", None),
    ("iam/security-credentials/BaseIAMRole", "", None),
    ("iam/security-credentials-extended/BaseIAMRole", "[credentials]\nextended = yes\n", None),
    ("ipv6", IPV6, "2001:db8:8:4::2"),
    ("kernel-id", "[instance]\nkernel-id = aki-5c21674b\n", "aki-5c21674b"),
    ("managed-ssh-keys/signer-cert", "[metadata]\nmanaged-ssh-keys/signer-cert = -----BEGIN\n",
     "-----BEGIN"),
    (MACS + "ipv4-associations/198.51.100.7", PUBLIC, "10.0.0.5"),
    (MACS + "ipv4-prefix", "[instance]\n%sipv4-prefix = 10.0.1.0/28\n" % MAC, "10.0.1.0/28"),
    (MACS + "ipv6-prefix", "[instance]\n%sipv6-prefix = 2001:db8:0:1::/80\n" % MAC,
     "2001:db8:0:1::/80"),
    (MACS + "ipv6s", IPV6, "2001:db8:8:4::2\n2001:db8:8:4::3"),
    (MACS + "network-card", "[instance]\n%snetwork-card = 1\n" % MAC, "1"),
    (MACS + "network-card", "[instance]\n%snetwork-card = 0\n" % MAC, "0"),
    (MACS + "public-hostname", PUBLIC, "ec2-198-51-100-7.compute-1.amazonaws.com"),
    (MACS + "public-ipv4s", PUBLIC, "198.51.100.7"),
    (MACS + "subnet-ipv6-cidr-blocks", IPV6, "2001:db8:8:4:0:0:0:0/64"),
    (MACS + "vpc-ipv6-cidr-blocks", IPV6, "2001:db8:8:0:0:0:0:0/56"),
    ("placement/group-name", "[metadata]\nplacement/group-name = my-group\n", "my-group"),
    ("placement/host-id", "[metadata]\nplacement/host-id = h-0da999999f9999fb9\n",
     "h-0da999999f9999fb9"),
    ("placement/partition-number", "[metadata]\nplacement/partition-number = 1\n", "1"),
    ("product-codes", "[instance]\nproduct-codes = 3iplms73etrdhxdepv72l6ywj\n",
     "3iplms73etrdhxdepv72l6ywj"),
    ("public-hostname", PUBLIC, "ec2-198-51-100-7.compute-1.amazonaws.com"),
    ("public-ipv4", PUBLIC, "198.51.100.7"),
    ("public-keys/0/openssh-key", "[instance]\nkey-name = my-key\npublic-key = %s\n" % KEY,
     KEY + "\n"),
    ("ramdisk-id", "[instance]\nramdisk-id = ari-01bb5768\n", "ari-01bb5768"),
    ("spot/instance-action", "[events]\nspot-interruption = +0s stop\n",
     '{"action": "stop", "time": "2026-12-01T08:02:00Z"}'),
    ("spot/termination-time", "[events]\nspot-interruption = +0s terminate\n",
     "2026-12-01T08:02:00Z"),
    ("tag-sets/instance", TAGS, "{}"),
    ("tag-sets/instance", TAGS + "[tags]\nName = box\nEnv = dev\n", '{"Name":"box","Env":"dev"}'),
    ("tags/instance/Name", TAGS + "[tags]\nName = my box\n", "my box"),
    ("tags/instance/Empty", TAGS + "[tags]\nEmpty =\n", ""),
]

IDENTITIES = {
    "default": "",
    "frankfurt": "[instance]\navailability-zone = eu-central-1b\nlocal-ipv4 = 10.1.2.3, 10.1.2.4\n"
                 "account-id = 111122223333\nkey-name = my-key\ninstance-type = m7g.large\n"
                 "[credentials]\nrole = Other\nextended = yes\n",
    "china": "[instance]\navailability-zone = cn-north-1a\npublic-ipv4 = 198.51.100.7\n",
    "govcloud": "[instance]\navailability-zone = us-gov-west-1b\n",
    "local zone": "[instance]\navailability-zone = us-west-2-lax-1a\n",
    "wavelength zone": "[instance]\navailability-zone = us-east-1-wl1-bos-wlz-1\n",
    "no public address": "[instance]\npublic-ipv4 =\n",
    "no role": "[credentials]\nrole =\n",
    "ipv6": IPV6,
    "ipv6 only": "[instance]\nlocal-ipv4 =\npublic-ipv4 =\nipv6 = 2001:db8:8:4::2\n",
    "small vpc": "[instance]\nlocal-ipv4 = 10.237.0.16\nvpc-ipv4-cidr-blocks = 10.237.0.0/24\n",
    "small vpc elsewhere": "[instance]\nlocal-ipv4 = 10.237.9.16\n"
                           "vpc-ipv4-cidr-blocks = 10.237.9.0/24\n",
    "small subnet": "[instance]\nsubnet-ipv4-cidr-block = 10.237.0.0/27\n"
                    "vpc-ipv4-cidr-blocks = 10.237.0.0/24\n",
    "two interfaces": "[interface eth1]\n",
    "three interfaces": "[interface eth1]\npublic-ipv4 = 198.51.100.8\n"
                        "[interface eth2]\nipv6 = 2001:db8:8:5::2\n",
    "two interfaces, ipv6 on the first": IPV6 + "[interface eth1]\n",
    "two interfaces, ipv6 on the second": "[interface eth1]\nipv6 = 2001:db8:8:4::2\n",
    "two subnets": "[instance]\nlocal-ipv4 = 10.0.0.5\n[interface eth1]\nlocal-ipv4 = 10.0.64.5\n",
    "two networks": "[instance]\nlocal-ipv4 = 10.0.0.5\n"
                    "[interface eth1]\nlocal-ipv4 = 192.168.1.5\n",
    "named subnet": "[instance]\nsubnet-id = subnet-0123456789abcdef0\n"
                    "vpc-id = vpc-0123456789abcdef0\n[interface eth1]\n",
    "named groups": "[instance]\nsecurity-groups = web, db\n"
                    "security-group-ids = sg-11111111, sg-22222222\n[interface eth1]\n",
    "small subnet, two interfaces": "[instance]\nlocal-ipv4 = 10.237.0.16\n"
                                    "subnet-ipv4-cidr-block = 10.237.0.0/27\n"
                                    "vpc-ipv4-cidr-blocks = 10.237.0.0/24\n[interface eth1]\n",
}


def value(metadata, path):
    """Return the text at a path, or None."""
    found = metadata.find(path)
    if isinstance(found, fake_metadata.SignedDocument):
        wait_for(found.current, what="a signature")
    document = found and found.current()
    return document and document.body.decode()


def crawl(metadata, path=META[:-1]):
    """Return {path: text} of all that a crawler such as cloud-init finds below a directory."""
    found = {}
    for name in value(metadata, path).split("\n"):
        if path.endswith("/public-keys"):
            name = name.partition("=")[0] + "/"
        if name.endswith("/"):
            found.update(crawl(metadata, path + "/" + name[:-1]))
        else:
            found[path + "/" + name] = value(metadata, path + "/" + name)
    return found


class Tree:
    """All values of an instance, as a crawler finds them."""

    def __init__(self, metadata):
        self.values = dict(crawl(metadata), **crawl(metadata, "/latest/dynamic"))
        self.document = json.loads(self.values[DOCUMENT])
        self.macs = [name[:-1] for name in
                     value(metadata, META + "network/interfaces/macs").split("\n")]

    def __getitem__(self, path):
        return self.values.get(META + path)

    def of(self, mac, key):
        """Return a value of the interface with a MAC address."""
        return self["network/interfaces/macs/%s/%s" % (mac, key)]

    def lines(self, mac, key):
        return (self.of(mac, key) or "").split("\n") if self.of(mac, key) else []

    def search(self, pattern):
        """Return the set of all texts in the tree that look like a pattern."""
        return {found for text in self.values.values() for found in re.findall(pattern, text)}


@pytest.fixture(scope="module", params=list(IDENTITIES))
def tree(request, tmp_path_factory):
    """The tree of each identity."""
    path = tmp_path_factory.mktemp("identity") / "fake-metadata.conf"
    path.write_text(IDENTITIES[request.param])
    config = fake_metadata.load_config([fake_metadata.ConfigFile(str(path))], environ={})
    credentials = fake_metadata.make_credentials(config, print, None)
    return Tree(fake_metadata.MetadataService(config, credentials, SIGNER, "a box"))


def listed(metadata, path):
    """Tell whether a path and each directory above it are listed, as a crawler needs it."""
    parts = path.split("/")
    return all(
        name in (value(metadata, "/".join(parts[:depth])) or "").split("\n")
        for depth, name in (
            (depth, part + "/" * (depth + 1 < len(parts)))
            for depth, part in enumerate(parts) if depth >= 3))


# Every path.

@pytest.mark.parametrize("text", ["", BARE], ids=["default", "bare"])
def test_paths_that_are_always_there(make_metadata, text):
    """What every instance has is there and listed, on a default instance and on a bare one."""
    metadata = make_metadata(text)
    paths = [META + path.replace("{mac}", value(metadata, META + "mac")) for path in ALWAYS]

    assert [path for path in paths if not value(metadata, path)] == []
    assert [path for path in paths if not listed(metadata, path)] == []


@pytest.mark.parametrize("path, text, expected", CONDITIONAL)
def test_path_that_is_asked_for(make_metadata, path, text, expected):
    """What only some instances have is there and listed when the configuration asks for it."""
    metadata = make_metadata(text)
    found = value(metadata, META + path)

    assert found is not None if expected is None else found == expected
    assert path.startswith("public-keys") or listed(metadata, META + path)


def test_paths_that_are_not_asked_for(make_metadata):
    """What only some instances have is neither there nor listed on a bare instance."""
    metadata = make_metadata(BARE + MAC)
    paths = {META + path for path, _, _ in CONDITIONAL}

    assert [path for path in paths if metadata.find(path)] == []
    assert [path for path in paths if listed(metadata, path)] == []


def test_no_empty_directories(make_metadata):
    """No directory is listed that has nothing in it."""
    assert "" not in crawl(make_metadata(BARE)).values()


@pytest.mark.parametrize("path", [
    "/latest/user-data", "/latest/dynamic/fws", "/latest/dynamic/fws/instance-monitoring",
    "/latest/api", "/v2", "/v2/credentials", "/latest/dynamic/instance-identity/dsa2048",
    META + "spot", META + "tags", META + "tag-sets", META + "autoscaling",
    META + "events/recommendations", META + "public-keys", META + "no-such-thing",
    META + "instance-id/x", META + "iam/security-credentials/OtherRole", "/2021-03-24", "/nothing"])
def test_path_that_is_not_there(make_metadata, path):
    """What is not on a default instance is not found."""
    assert make_metadata().find(path) is None


def test_whole_path(make_metadata):
    """A value of one's own may be at a whole path, outside of meta-data/, and is listed there."""
    metadata = make_metadata("[metadata]\n/latest/dynamic/fws/instance-monitoring = enabled\n")

    assert value(metadata, "/latest/dynamic/fws/instance-monitoring") == "enabled"
    assert value(metadata, "/latest/dynamic") == "fws/\ninstance-identity/"


@pytest.mark.parametrize("path, expected", [
    ("/", "\n".join(fake_metadata.VERSIONS)),
    ("/latest", "dynamic\nmeta-data\nuser-data"),
    ("/latest/dynamic", "instance-identity/"),
    ("/latest/dynamic/instance-identity", "document\npkcs7\nrsa2048\nsignature"),
    (META + "block-device-mapping", "ami\nroot"),
    (META + "events", "maintenance/"),
    (META + "events/maintenance", "history\nscheduled"),
    (META + "events/maintenance/history", "[]"),
    (META + "events/maintenance/scheduled", "[]"),
    (META + "iam", "info\nsecurity-credentials/"),
    (META + "iam/security-credentials", "BaseIAMRole"),
    (META + "identity-credentials", "ec2/"),
    (META + "identity-credentials/ec2", "info\nsecurity-credentials/"),
    (META + "identity-credentials/ec2/security-credentials", "ec2-instance"),
    (META + "metrics", "vhostmd"),
    (META + "network", "interfaces/"),
    (META + "network/interfaces", "macs/"),
    (META + "placement", "availability-zone\navailability-zone-id\nregion"),
    (META + "services", "domain\npartition"),
])
def test_listing(make_metadata, path, expected):
    """A listing is in order, joined by line feeds, none at its end, a slash behind directories."""
    assert value(make_metadata(), path) == expected


def test_listing_of_meta_data(make_metadata):
    """The listing of meta-data/ is that of a real instance with the same things."""
    assert value(make_metadata(BARE), META[:-1]).split("\n") == """
        ami-id ami-launch-index ami-manifest-path block-device-mapping/ events/ hostname
        identity-credentials/ instance-action instance-id instance-life-cycle instance-type
        local-hostname local-ipv4 mac metrics/ network/ placement/ profile reservation-id
        security-groups services/ system""".split()


def test_listing_of_an_interface(make_metadata):
    """The listing of an interface without public address and IPv6 is that of a real one."""
    metadata = make_metadata(BARE + MAC)

    assert value(metadata, META + MACS[:-1]).split("\n") == """
        device-number interface-id local-hostname local-ipv4s mac owner-id security-group-ids
        security-groups subnet-id subnet-ipv4-cidr-block vpc-id vpc-ipv4-cidr-block
        vpc-ipv4-cidr-blocks""".split()


def test_listings_lead_to_all_values(make_metadata):
    """A crawler that follows the listings finds every value, and every name listed has one."""
    metadata = make_metadata(IDENTITIES["three interfaces"] + TAGS + "[tags]\nName = x\n"
                     "[instance]\nkey-name = k\nebs-volumes = sdf\n")
    found = dict(crawl(metadata), **crawl(metadata, "/latest/dynamic"))

    assert sorted(found) == [
        path for path in metadata.paths()
        if path.startswith((META, "/latest/dynamic/")) and not path.endswith("/public-keys")]
    assert None not in found.values()


def test_public_keys(make_metadata):
    """public-keys/ lists index=name without a slash, as cloud-init and facter read it."""
    metadata = make_metadata("[instance]\nkey-name = my key\n")

    assert value(metadata, META + "public-keys") == "0=my key"
    assert value(metadata, META + "public-keys/0") == "openssh-key"


def test_generated_public_key(make_metadata):
    """The key made for a key name is ed25519, the name its comment, one line feed at its end."""
    key = value(make_metadata("[instance]\nkey-name = my-key\n"),
                META + "public-keys/0/openssh-key")

    assert re.fullmatch(r"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[\w+/]{43} my-key\n", key)


def test_name_in_the_public_key(make_metadata):
    """Without a key name the comment of the public key is the name."""
    metadata = make_metadata("[instance]\npublic-key = %s\n" % KEY)

    assert value(metadata, META + "public-keys") == "0=my-key"


# One identity.

def test_region_is_that_of_the_zone(tree):
    """The region is how the zone begins, in the identity document too."""
    assert tree["placement/availability-zone"].startswith(tree["placement/region"])
    assert tree.document["region"] == tree["placement/region"]
    assert tree.document["availabilityZone"] == tree["placement/availability-zone"]


def test_no_other_region_anywhere(tree):
    """No value in the tree is of another region."""
    regions = tree.search(r"\b(?:us-gov|[a-z]{2})-(?:north|south|east|west|central)+-\d")

    assert regions == {tree["placement/region"]}


@pytest.mark.parametrize("zone, region, zone_id, partition, domain, local, public", [
    ("us-east-1a", "us-east-1", "use1-az1", "aws", "amazonaws.com",
     "ec2.internal", "compute-1.amazonaws.com"),
    ("us-east-1f", "us-east-1", "use1-az6", "aws", "amazonaws.com",
     "ec2.internal", "compute-1.amazonaws.com"),
    ("eu-central-1b", "eu-central-1", "euc1-az3", "aws", "amazonaws.com",
     "eu-central-1.compute.internal", "eu-central-1.compute.amazonaws.com"),
    ("ap-southeast-2c", "ap-southeast-2", "apse2-az3", "aws", "amazonaws.com",
     "ap-southeast-2.compute.internal", "ap-southeast-2.compute.amazonaws.com"),
    ("cn-northwest-1a", "cn-northwest-1", "cnnw1-az1", "aws-cn", "amazonaws.com.cn",
     "cn-northwest-1.compute.internal", "cn-northwest-1.compute.amazonaws.com.cn"),
    ("us-gov-east-1a", "us-gov-east-1", "usge1-az1", "aws-us-gov", "amazonaws.com",
     "us-gov-east-1.compute.internal", "us-gov-east-1.compute.amazonaws.com"),
    ("us-west-2-lax-1a", "us-west-2", "usw2-lax1-az1", "aws", "amazonaws.com",
     "us-west-2.compute.internal", "us-west-2.compute.amazonaws.com"),
    ("us-east-1-wl1-bos-wlz-1", "us-east-1", "use1-wl1-bos-wlz1", "aws", "amazonaws.com",
     "ec2.internal", "compute-1.amazonaws.com"),
])
def test_what_follows_from_a_zone(
        make_metadata, zone, region, zone_id, partition, domain, local, public):
    """Region, zone id, partition, domain and the ends of host names follow from the zone."""
    tree = Tree(make_metadata("[instance]\navailability-zone = %s\nlocal-ipv4 = 10.0.0.5\n"
                          "public-ipv4 = 198.51.100.7\n" % zone))

    assert (tree["placement/region"], tree["placement/availability-zone-id"]) == (region, zone_id)
    assert (tree["services/partition"], tree["services/domain"]) == (partition, domain)
    assert tree["local-hostname"] == "ip-10-0-0-5." + local
    assert tree["public-hostname"] == "ec2-198-51-100-7." + public


def test_arns_have_the_partition_and_the_account(tree):
    """Every ARN in the tree is of the partition, the account and the role."""
    arns = tree.search(r"arn:[^\"]+")
    roles = {path.rpartition("/")[2] for path in tree.values
             if path.startswith(META + "iam/security-credentials/")}

    assert arns == {"arn:%s:iam::%s:instance-profile/%s" % (
        tree["services/partition"], tree.document["accountId"], role) for role in roles}


def test_no_other_account_anywhere(tree):
    """Every account id in the tree is that of the identity document."""
    accounts = tree.search(r"(?<![\w./+=-])\d{12}(?![\w/+=-])")

    assert accounts == {tree.document["accountId"]}


def test_no_other_instance_anywhere(tree):
    """Every instance id in the tree is that of instance-id."""
    assert tree.search(r"\bi-[0-9a-f]{8,17}\b") == {tree["instance-id"]}


def test_document_says_what_the_tree_says(tree):
    """The identity document agrees with the tree."""
    same = {"imageId": "ami-id", "instanceId": "instance-id", "instanceType": "instance-type",
            "privateIp": "local-ipv4", "region": "placement/region", "kernelId": "kernel-id",
            "ramdiskId": "ramdisk-id"}

    assert {key: tree.document[key] for key in same} == {
        key: tree[path] for key, path in same.items()}


def test_host_names_follow_from_the_address(tree):
    """All forms of the local host name are the same, and have the address in them."""
    address = tree["local-ipv4"]
    name = "ip-" + address.replace(".", "-") if address else tree["instance-id"]

    assert tree["hostname"] == tree["local-hostname"] == tree.of(tree["mac"], "local-hostname")
    assert tree["hostname"].partition(".")[0] == name


def test_addresses_are_those_of_the_first_interface(tree):
    """The addresses of the instance are the first ones of its first interface."""
    for path in "local-ipv4", "ipv6", "public-ipv4":
        assert tree[path] == (tree.lines(tree["mac"], path + "s") + [None])[0]


def test_instance_is_its_first_interface(tree):
    """What the instance says of itself its first interface says too."""
    paths = "mac", "public-hostname", "local-hostname", "security-groups"

    assert [tree[path] for path in paths] == [tree.of(tree["mac"], path) for path in paths]
    assert tree.of(tree["mac"], "device-number") == "0"


def test_each_interface_says_its_own_mac(tree):
    """An interface is found by the MAC address that it says."""
    assert [tree.of(mac, "mac") for mac in tree.macs] == tree.macs


def test_nothing_belongs_to_two_interfaces(tree):
    """No address, id or number belongs to two interfaces."""
    for key in "device-number", "interface-id", "local-ipv4s", "public-ipv4s", "ipv6s":
        all_lines = [line for mac in tree.macs for line in tree.lines(mac, key)]
        assert len(all_lines) == len(set(all_lines)), key


def test_public_address_is_associated_with_the_private_one(tree):
    """The association of a public address leads to the first private one of the same interface."""
    for mac in tree.macs:
        for public in tree.lines(mac, "public-ipv4s"):
            assert tree.of(mac, "ipv4-associations/" + public) == tree.lines(mac, "local-ipv4s")[0]


def network_of(cidr):
    """Return (family, first address, last address) of a block, the addresses as numbers."""
    address, _, bits = cidr.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    first = int.from_bytes(packed, "big")
    return family, first, first + (1 << len(packed) * 8 - int(bits or len(packed) * 8)) - 1


def is_within(inner, outer):
    family, first, last = network_of(inner)
    outer_family, outer_first, outer_last = network_of(outer)
    return family == outer_family and outer_first <= first and last <= outer_last


def test_addresses_are_in_their_subnet_and_subnets_in_their_vpc(tree):
    """Each address is within the subnet of its interface, and each whole subnet within the VPC."""
    for inner, outer in (("local-ipv4s", "subnet-ipv4-cidr-block"),
                         ("subnet-ipv4-cidr-block", "vpc-ipv4-cidr-blocks"),
                         ("ipv6s", "subnet-ipv6-cidr-blocks"),
                         ("subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks")):
        for mac in tree.macs:
            for item in tree.lines(mac, inner):
                assert any(is_within(item, block) for block in tree.lines(mac, outer)), (
                    inner, item)


def test_one_block_is_one_subnet(tree):
    """Interfaces whose subnet has the same block in the same VPC are in the same subnet."""
    seen = {}
    for mac in tree.macs:
        block = tree.of(mac, "vpc-id"), tree.of(mac, "subnet-ipv4-cidr-block")
        subnet = tree.of(mac, "subnet-id")
        assert block[1] is None or seen.setdefault(block, subnet) == subnet


def test_each_security_group_has_one_id(tree):
    """There are as many ids as names of security groups, and a name has one id everywhere."""
    pairs = set()
    for mac in tree.macs:
        names, ids = tree.lines(mac, "security-groups"), tree.lines(mac, "security-group-ids")
        assert len(names) == len(ids)
        pairs |= set(zip(names, ids))

    assert len(pairs) == len({name for name, _ in pairs})


def test_block_of_the_vpc_is_the_first_one(tree):
    """vpc-ipv4-cidr-block is the first of vpc-ipv4-cidr-blocks, and absent with them."""
    for mac in tree.macs:
        blocks = tree.lines(mac, "vpc-ipv4-cidr-blocks")
        assert tree.of(mac, "vpc-ipv4-cidr-block") == (blocks + [None])[0]


def test_owner_of_each_interface(tree):
    """Each interface belongs to the account."""
    assert {tree.of(mac, "owner-id") for mac in tree.macs} == {tree.document["accountId"]}


def test_launch_time(make_metadata):
    """The pending time is the launch time that is configured, whatever it is."""
    tree = Tree(make_metadata("[instance]\nlaunch-time = 1970-01-01T00:00:00Z\n"))

    assert tree.document["pendingTime"] == "1970-01-01T00:00:00Z"


def test_root_device(make_metadata):
    """The block device mapping names the root device with and without its directory."""
    tree = Tree(make_metadata("[instance]\nroot-device = /dev/sda1\n"))

    assert (tree["block-device-mapping/ami"], tree["block-device-mapping/root"]) == (
        "sda1", "/dev/sda1")


@pytest.mark.parametrize("instance_type, architecture, system", [
    ("t3.micro", "x86_64", "nitro"), ("m7g.large", "arm64", "nitro"),
    ("t4g.nano", "arm64", "nitro"), ("a1.medium", "arm64", "nitro"),
    ("im4gn.large", "arm64", "nitro"), ("g5g.xlarge", "arm64", "nitro"),
    ("g4dn.xlarge", "x86_64", "nitro"), ("g6.xlarge", "x86_64", "nitro"),
    ("hpc7g.4xlarge", "arm64", "nitro"), ("m5.metal", "x86_64", "nitro"),
    ("t2.micro", "x86_64", "xen"), ("m3.medium", "x86_64", "xen"), ("g3s.xlarge", "x86_64", "xen"),
    ("u-6tb1.112xlarge", "x86_64", "nitro"), ("u7i-12tb.224xlarge", "x86_64", "nitro")])
def test_what_follows_from_the_instance_type(make_metadata, instance_type, architecture, system):
    """Architecture and system follow from the instance type."""
    tree = Tree(make_metadata("[instance]\ninstance-type = %s\n" % instance_type))

    assert (tree.document["architecture"], tree["system"]) == (architecture, system)


@pytest.mark.parametrize("text, expected", [
    ("", "on-demand"), ("[events]\nspot-interruption = +1h terminate\n", "spot"),
    ("[instance]\ninstance-life-cycle = scheduled\n[events]\nspot-interruption = +1h terminate\n",
     "scheduled")])
def test_life_cycle(make_metadata, text, expected):
    """An instance that is to be interrupted is a spot instance, unless configured otherwise."""
    assert value(make_metadata(text), META + "instance-life-cycle") == expected


def test_identity_document_to_the_byte(make_metadata):
    """The identity document has the real one's keys, order and spacing, and no final line feed."""
    metadata = make_metadata(
        "[instance]\ninstance-id = i-0123456789abcdef0\nami-id = ami-0123456789abcdef0\n"
        "local-ipv4 = 10.0.0.5\nlaunch-time = 2026-12-01T08:00:00Z\n"
        "billing-products = bp-63a5400a\nproduct-codes = one, two\n")

    assert value(metadata, DOCUMENT) == """{
  "accountId" : "123456789012",
  "architecture" : "x86_64",
  "availabilityZone" : "us-east-1a",
  "billingProducts" : [ "bp-63a5400a" ],
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : [ "one", "two" ],
  "imageId" : "ami-0123456789abcdef0",
  "instanceId" : "i-0123456789abcdef0",
  "instanceType" : "t3.micro",
  "kernelId" : null,
  "pendingTime" : "2026-12-01T08:00:00Z",
  "privateIp" : "10.0.0.5",
  "ramdiskId" : null,
  "region" : "us-east-1",
  "version" : "2017-09-30"
}"""


def test_iam_info_to_the_byte(make_metadata):
    """iam/info has the form of the real one."""
    assert re.fullmatch("""{
  "Code" : "Success",
  "LastUpdated" : "2026-12-01T08:00:00Z",
  "InstanceProfileArn" : "arn:aws:iam::123456789012:instance-profile/BaseIAMRole",
  "InstanceProfileId" : "AIPA[A-Z2-7]{17}"
}""", value(make_metadata(), META + "iam/info"))


def test_identity_info_to_the_byte(make_metadata):
    """identity-credentials/ec2/info has the form of the real one, with a role and without."""
    for text in "", BARE:
        assert value(make_metadata(text), META + "identity-credentials/ec2/info") == (
            '{\n  "Code" : "Success",\n  "LastUpdated" : "2026-12-01T08:00:00Z",\n'
            '  "AccountId" : "123456789012"\n}')


def test_last_updated_moves_on(make_metadata, clock):
    """LastUpdated of iam/info moves as time goes by, as on a real instance."""
    metadata = make_metadata()

    clock.now += 7200

    assert "2026-12-01T10:00:00Z" in value(metadata, META + "iam/info")


# Which box, which instance.

DIFFERENT = ("instance-id", "reservation-id", "mac", "local-ipv4", "hostname", "local-hostname",
             "public-ipv4", "public-hostname")
SAME = ("ami-id", "placement/region", "placement/availability-zone", "instance-type",
        "services/domain", "iam/info")


@pytest.mark.parametrize("one, other", [
    (("", "box 1"), ("", "box 2")),
    (("[instance]\ninstance-id = i-00000000000000001\n", "a box"),
     ("[instance]\ninstance-id = i-00000000000000002\n", "a box"))],
    ids=["two boxes", "two instance ids"])
@pytest.mark.parametrize("path", DIFFERENT + ("interface-id",))
def test_two_instances_differ(make_metadata, one, other, path):
    """Two boxes, or two instance ids on one box, differ in all that belongs to an instance."""
    trees = [Tree(make_metadata(*instance)) for instance in (one, other)]

    first, second = [tree[path] or tree.of(tree["mac"], path) for tree in trees]
    assert first != second


@pytest.mark.parametrize("path", SAME)
def test_two_instances_of_one_account_agree(make_metadata, path):
    """Two boxes agree on what belongs to the account, the region and the image."""
    assert Tree(make_metadata("", "box 1"))[path] == Tree(make_metadata("", "box 2"))[path]


def test_two_instances_are_in_one_vpc(make_metadata):
    """Two boxes of one account and region are in the same VPC and the same security group."""
    trees = [Tree(make_metadata("", box)) for box in ("box 1", "box 2")]

    for key in "vpc-id", "vpc-ipv4-cidr-block", "security-group-ids":
        assert len({tree.of(tree["mac"], key) for tree in trees}) == 1


def test_ids_are_stable(make_metadata, clock):
    """A box is the same instance after a restart, at another time, but for its credentials."""
    before = Tree(make_metadata(IDENTITIES["three interfaces"])).values
    clock.now += 86400
    after = Tree(make_metadata(IDENTITIES["three interfaces"])).values

    assert {path for path in before if before[path] != after.get(path)} == {
        META + path for path in (
            "iam/info", "iam/security-credentials/BaseIAMRole", "identity-credentials/ec2/info",
            "identity-credentials/ec2/security-credentials/ec2-instance")}


@pytest.mark.parametrize("path, pattern", [
    ("instance-id", "i-0[0-9a-f]{16}"), ("ami-id", "ami-0[0-9a-f]{16}"),
    ("reservation-id", "r-0[0-9a-f]{16}"), ("mac", "0e(:[0-9a-f]{2}){5}"),
    ("public-ipv4", r"203\.0\.113\.\d+"), ("local-ipv4", r"172\.31\.\d+\.\d+"),
    ("interface-id", "eni-0[0-9a-f]{16}"), ("subnet-id", "subnet-0[0-9a-f]{16}"),
    ("vpc-id", "vpc-0[0-9a-f]{16}"), ("security-group-ids", "sg-0[0-9a-f]{16}")])
def test_form_of_ids_made(make_metadata, path, pattern):
    """Ids and addresses made have the form of real ones; the public one is for documentation."""
    tree = Tree(make_metadata())

    assert re.fullmatch(pattern, tree[path] or tree.of(tree["mac"], path))


def test_launch_is_the_boot_of_the_box(make_metadata):
    """With nothing configured the launch was when the box booted, and stays so over restarts."""
    with open("/proc/stat") as file:
        booted = int(re.search(r"^btime (\d+)", file.read(), re.MULTILINE).group(1))

    assert Tree(make_metadata()).document["pendingTime"] == fake_metadata.utc(booted)


def test_box_is_known_by_its_machine_id(tmp_path):
    """A box is known by its machine-id."""
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    paths = [str(tmp_path / "missing"), str(tmp_path / "machine-id")]

    assert box_id(paths=paths) == "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("content", ["", "\n", "uninitialized\n"])
def test_box_without_machine_id(tmp_path, content):
    """A box with no machine-id yet is known by its name and network cards, always the same."""
    (tmp_path / "machine-id").write_text(content)
    paths = [str(tmp_path / "machine-id")]

    assert box_id(paths=paths) == box_id(paths=paths)
    assert box_id(paths=paths).startswith(socket.gethostname())


def test_id_of_its_own(tmp_path, monkeypatch):
    """Without a machine-id the box gets an id in its state directory, and keeps it."""
    first = box_id(str(tmp_path), paths=[])
    monkeypatch.setattr(fake_metadata.uuid, "getnode", lambda: 1)  # as after a boot

    assert box_id(str(tmp_path), paths=[]) == first
    assert (tmp_path / "id").read_text() == first + "\n"


def test_clone_is_told_to_be_another(tmp_path):
    """What somebody writes in the file wins over the machine-id."""
    (tmp_path / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "id").write_text("another\n")

    assert box_id(str(tmp_path), [str(tmp_path / "machine-id")]) == "another"


def test_id_where_none_can_be_kept(tmp_path):
    """Where there is no place to keep an id the box has one all the same."""
    assert box_id(str(tmp_path / "missing"), paths=[])


# Values of one's own.

@pytest.mark.parametrize("text, path, expected", [
    ("own/path = x", "own/path", "x"),
    ("own/path/ = x", "own/path", "x"),
    ("/latest/meta-data/own/path/ = x", "own/path", "x"),
    ("/2021-07-15/meta-data/own = x", "own", "x"),
    ('own = ""', "own", ""),
    ('own = " two\\n\\n  lines\\n"', "own", " two\n\n  lines\n"),
    ('own = "caf\\u00e9 \\"quoted\\""', "own", 'caf\u00e9 "quoted"'),
    ('own = "no" JSON"', "own", '"no" JSON"'),
    ('own = "\\ud800"', "own", '"\\ud800"'),
    ('own = {"a": "b"}', "own", '{"a": "b"}'),
    ("instance-id = other", "instance-id", "other"),
    ("placement/host-id = h-1", "placement/host-id", "h-1"),
    ("iam/security-credentials/BaseIAMRole = {}", "iam/security-credentials/BaseIAMRole", "{}"),
    ("iam/security-credentials/Second = {}", "iam/security-credentials/Second", "{}"),
    ("events/maintenance/scheduled = []", "events/maintenance/scheduled", "[]"),
    ("own = {curly} 100%", "own", "{curly} 100%"),
    ("own = several\n  lines", "own", "several\nlines"),
    ("own = caf\u00e9", "own", "caf\u00e9"),
    ("managed-ssh-keys/active-keys/dev = x", "managed-ssh-keys/active-keys/dev", "x"),
])
def test_own_value(make_metadata, text, path, expected):
    """A value of one's own is added, or replaces what is there, and is listed."""
    metadata = make_metadata("[metadata]\n%s\n" % text)

    assert value(metadata, META + path) == expected
    assert listed(metadata, META + path)


@pytest.mark.parametrize("path", [
    "instance-id", "metrics/vhostmd", "metrics", "iam", "iam/security-credentials", "network",
    "public-keys", "events/maintenance/history", "tags"])
def test_own_value_that_is_empty(make_metadata, path):
    """An empty value removes a path, all below it and its listing; no empty directory stays."""
    metadata = make_metadata("[instance]\nkey-name = k\n[metadata]\n%s =\n%s[tags]\na = b\n"
                             % (path, TAGS))

    assert metadata.find(META + path) is None
    assert not [other for other in metadata.paths() if other.startswith(META + path + "/")]
    assert not listed(metadata, META + path)
    crawl(metadata)


WHOLE = ("[metadata]\n/v4/0123/task = {}\n/openstack/latest/meta_data.json = {1}\n"
         "/openstack/2018-08-27/meta_data.json = {2}\n/latest/dynamic/fws/x = 3\n")


@pytest.mark.parametrize("path, expected", [
    ("/v4/0123/task", "{}"), ("/v4/0123", "task"), ("/v4", "0123/"),
    ("/openstack/latest/meta_data.json", "{1}"), ("/openstack", "2018-08-27/\nlatest/"),
    ("/openstack/latest", "meta_data.json"), ("/latest/dynamic/fws", "x"),
    ("/latest", "dynamic\nmeta-data\nuser-data"), ("/", "\n".join(fake_metadata.VERSIONS)),
    ("/latest/meta-data/openstack", None), ("/v2", None), ("/v2/credentials", None),
    ("/role", None),
])
def test_whole_paths(make_metadata, path, expected):
    """A path with a leading slash is one from the root; its directories are listed."""
    assert value(make_metadata(WHOLE), path) == expected


def test_whole_path_is_removed(make_metadata):
    """An empty value removes a whole path and what is below it."""
    metadata = make_metadata("[metadata]\n/latest/dynamic =\n/2021-07-15/user-data =\n"
                             "[user-data]\ntext = x\n")

    assert value(metadata, "/latest/dynamic/instance-identity/document") is None
    assert value(metadata, "/latest/dynamic") is None
    assert value(metadata, "/latest/user-data") is None


def test_whole_path_needs_a_session_token(serve):
    """Whole paths are admitted as all of IMDS is, and are dumped."""
    service = serve(WHOLE + "[metadata-options]\nhttp-tokens = required\n")

    assert service.get("/v4/0123/task")[0] == 401
    assert service.get("/v4/0123/task", service.token())[2] == "{}"
    assert service.get("/openstack/", service.token())[2] == "2018-08-27/\nlatest/"


def test_removing_what_is_not_there(make_metadata):
    """An empty value for a path that is not there changes nothing."""
    assert make_metadata("[metadata]\nno/such/path =\n").paths() == make_metadata().paths()


def test_own_value_beside_what_it_replaces(make_metadata):
    """A directory can be taken away and made anew, in this order."""
    metadata = make_metadata("[metadata]\nplacement =\nplacement/region = mars-1\n")

    assert value(metadata, META + "placement") == "region"


@pytest.mark.parametrize("text", [
    "", "[tags]\nName = x\n",
    "[tags]\nName = x\n[metadata-options]\ninstance-metadata-tags = disabled\n"])
def test_tags_that_are_off(make_metadata, text):
    """Tags are not there unless instance-metadata-tags is enabled."""
    metadata = make_metadata(text)

    assert metadata.find(META + "tags") is None
    assert metadata.find(META + "tag-sets") is None


def test_tags_that_are_on_and_none(make_metadata):
    """Without tags there is no tags/, and tag-sets/instance is an empty object."""
    metadata = make_metadata(TAGS)

    assert metadata.find(META + "tags") is None
    assert value(metadata, META + "tag-sets") == "instance"


def test_tags_in_order(make_metadata):
    """Tags are listed in order, one per line."""
    metadata = make_metadata(TAGS + "[tags]\nb = 2\na:c@d = 1\nB = 3\n")

    assert value(metadata, META + "tags") == "instance/"
    assert value(metadata, META + "tags/instance") == "B\na:c@d\nb"


@pytest.mark.parametrize("text, expected", [
    ("text = #cloud-config", b"#cloud-config"),
    ("text = #!/bin/sh\n  echo hello\n  exit 0", b"#!/bin/sh\necho hello\nexit 0"),
    ("text = caf\u00e9", "caf\u00e9".encode()),
    ("base64 = IyEvYmluL3NoCiAgZWNobwo=", b"#!/bin/sh\n  echo\n"),
    ("base64 = IyEvYmlu\n  L3NoCiAg\n  ZWNo bwo=", b"#!/bin/sh\n  echo\n"),
    ("base64 = AP8=", b"\0\xff"),
    ("text = %s" % ("x" * 16384), b"x" * 16384),
])
def test_user_data_in_the_configuration(make_metadata, text, expected):
    """User data can stand in the configuration, up to 16 KiB."""
    assert make_metadata("[user-data]\n%s\n" % text).find("/latest/user-data").body == expected


@pytest.mark.parametrize("content", [
    b"#!/bin/sh\n\n  indented\n# comment\n", b"\x1f\x8b\0\xff\r\n", os.urandom(16384)],
    ids=["script", "gzip", "16 KiB"])
def test_user_data_in_a_file(make_metadata, tmp_path, content):
    """User data from a file are its bytes, as application/octet-stream."""
    (tmp_path / "user-data").write_bytes(content)

    text = "[user-data]\nfile = %s\n" % (tmp_path / "user-data")
    document = make_metadata(text).find("/latest/user-data")

    assert document.body == content
    assert b"Content-Type: application/octet-stream\r\n" in document.first_headers


def test_no_user_data(make_metadata, tmp_path):
    """Without user data, and with an empty file, there is no user-data."""
    (tmp_path / "user-data").write_bytes(b"")
    text = "[user-data]\nfile = %s\n" % (tmp_path / "user-data")

    assert make_metadata().find("/latest/user-data") is None
    assert make_metadata(text).find("/latest/user-data") is None


def test_user_data_over_the_limit(check, tmp_path):
    """A file over 16 KiB is refused."""
    (tmp_path / "user-data").write_bytes(b"x" * 16385)

    code, said = check("[user-data]\nfile = %s\n" % (tmp_path / "user-data"))

    assert code == 1
    assert "16384 bytes" in said


@pytest.mark.parametrize("target", [
    "/latest/meta-data/instance-id", "/latest/meta-data/instance-id/",
    "//latest///meta-data/./instance-id", "/latest/meta-data/%69nstance-id",
    "/latest/meta-data/instance-id?x=1"] + [
        "/%s/meta-data/instance-id" % version for version in fake_metadata.VERSIONS])
def test_forms_of_a_path(target):
    """Dated versions, doubled slashes, dots, escapes and queries all lead to the same path."""
    assert fake_metadata.canonical_path(target) == "/latest/meta-data/instance-id"


@pytest.mark.parametrize("target, path", [
    ("/", "/"), ("", "/"), ("/2021-03-23", "/latest"), ("/2021-03-23/", "/latest"),
    ("/2021-03-24/", "/2021-03-24"), ("/1.0/user-data", "/latest/user-data"),
    ("/2021-03-23/api/token", "/2021-03-23/api/token"), ("/%zz", "/%zz"),
    ("/latest/meta-data/../user-data", "/latest/user-data"), ("/../..", "/"), ("/a/./..", "/"),
    ("/a//../b", "/a/b"), ("/2021-03-23/../latest/x", "/latest/x"),
    ("/meta-data/latest", "/meta-data/latest")])
def test_path_of_a_target(target, path):
    """Only a real version is a version; nothing climbs up; tokens come from /latest only."""
    assert fake_metadata.canonical_path(target) == path


def test_dump(tmp_path, capfd):
    """--dump prints every path and its value, each line indented, credentials and user data too."""
    (tmp_path / "a.conf").write_text("[instance]\nlocal-ipv4 = 10.0.0.5, 10.0.0.6\nkey-name = k\n"
                                     "[user-data]\ntext = one\n  two\n[tags]\nName = x\n" + TAGS)

    assert fake_metadata.main(["--dump", "--config", str(tmp_path / "a.conf")]) == 0
    said = capfd.readouterr()

    assert said.err == ""
    assert META + "local-ipv4\n    10.0.0.5\n" in said.out
    assert "/local-ipv4s\n    10.0.0.5\n    10.0.0.6\n" in said.out
    assert "/latest/user-data\n    one\n    two\n" in said.out
    assert (META + 'iam/security-credentials/BaseIAMRole\n    {\n      "Code" : "Success",\n'
            in said.out)
    assert META + "tags/instance/Name\n    x\n" in said.out


def test_dump_has_every_path_once(tmp_path, capfd, make_metadata):
    """--dump prints every path that has a value, in order, once."""
    assert fake_metadata.main(["--dump"]) == 0
    paths = [line for line in capfd.readouterr().out.split("\n") if line.startswith("/")]

    assert [path for path in paths if "/macs/" not in path] == [
        path for path in make_metadata().paths() if "/macs/" not in path]


def test_dump_waits_for_credentials(tmp_path, capfd):
    """--dump fetches what it prints, from a command too."""
    (tmp_path / "a.conf").write_text(
        "[credentials]\nsource = process\ncommand = echo '%s'\n" % json.dumps(
            {"Version": 1, "AccessKeyId": "AKIAIOSFODNN7EXAMPLE", "SecretAccessKey": "x"}))

    assert fake_metadata.main(["--dump", "--config", str(tmp_path / "a.conf")]) == 0
    assert '"AccessKeyId" : "AKIAIOSFODNN7EXAMPLE"' in capfd.readouterr().out


def test_dump_of_a_source_that_fails(tmp_path, capfd):
    """--dump without credentials says why, shows all else, and ends with 1."""
    (tmp_path / "a.conf").write_text("[credentials]\nsource = process\ncommand = false\n")

    result = subprocess.run(
        [sys.executable, PROGRAM, "--dump", "--config", str(tmp_path / "a.conf")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

    assert result.returncode == 1
    assert "/latest/meta-data/instance-id\n" in result.stdout
    assert "(no credentials)" in result.stdout
    assert result.stderr.startswith(
        "fake-metadata: no new credentials for BaseIAMRole: the command failed with status 1;")
    assert result.stderr.count("\n") == 1


def test_dump_is_the_same_twice():
    """--dump of one configuration is the same twice, but for what rotates."""
    texts = [subprocess.run([sys.executable, PROGRAM, "--dump"], stdout=subprocess.PIPE,
                            universal_newlines=True, check=True).stdout for _ in range(2)]

    assert "instance-identity/pkcs7\n" in texts[0]
    assert [re.sub(ROTATING, r"\1", text) for text in texts] == [
        re.sub(ROTATING, r"\1", texts[0])] * 2


ROTATING = (r'("(?:AccessKeyId|SecretAccessKey|Token|Expiration|LastUpdated)" ?: ?)"[^"]*"')


def test_dump_into_a_closed_pipe():
    """--dump to somebody who reads no further says nothing of it."""
    result = subprocess.run(
        ["sh", "-c", '"$0" "$1" --dump | head -1', sys.executable, PROGRAM],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

    assert (result.stdout, result.stderr) == ("/\n", "")
