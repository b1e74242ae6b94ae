"""To the byte: facts of real instances, a request, and what those instances answered.

Each row has its source. A capture is what somebody recorded from a real instance; where its facts
were made anonymous, so are they here.
"""
import base64
import json

import pytest

import fake_metadata
from conversation import converse
from wire import request

META = "/latest/meta-data/"
MACS = META + "network/interfaces/macs/"
MAC = "[instance]\nmac = 0e:ff:d5:40:fe:7d\n"
NIC = MACS + "0e:ff:d5:40:fe:7d/"
OTHER = MACS + "0e:00:00:00:00:02/"
THIRD = MACS + "0e:00:00:00:00:03/"
SCHEDULED = META + "events/maintenance/scheduled"

XEN = MAC + "instance-type = t2.micro\n"
NITRO = MAC + "instance-type = c6g.medium\n"
CARDS = (MAC + "instance-type = p4d.24xlarge\n[interface a]\nmac = 0e:00:00:00:00:02\n"
         "[interface b]\nmac = 0e:00:00:00:00:03\nnetwork-card = 1\n")
ONLY_IPV6 = MAC + "local-ipv4 =\npublic-ipv4 =\nipv6 = 2406:da18:86c:daf1::5\n"
TWO_PUBLIC = (MAC + "local-ipv4 = 10.0.0.5, 10.0.0.6\npublic-ipv4 = 198.51.100.7, 198.51.100.8, "
                    "198.51.100.9\n")
TWO_KEYS = MAC + "public-key = ssh-rsa AAAA first\n  ssh-ed25519 BBBB second key\n"

HELP = ("Please see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/"
        "troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.")

TREE = [  # source, facts, path, text; None: 404
    # Block devices.
    ("Xen captures, 2014-2023", XEN, META + "block-device-mapping/ami", "/dev/xvda"),
    ("Xen captures of Ubuntu, 2016", XEN + "root-device = /dev/sda1\n",
     META + "block-device-mapping/ami", "/dev/sda1"),
    ("c6g capture, 2025", NITRO, META + "block-device-mapping/ami", "xvda"),
    ("t3 capture, 2022", MAC + "root-device = /dev/sda1\n", META + "block-device-mapping/ami",
     "sda1"),
    ("t3.nano capture, 2026", MAC, META + "block-device-mapping/root", "/dev/xvda"),
    ("instance-store captures", XEN + "root-device-type = instance-store\n",
     META + "block-device-mapping/ami", "sda1"),
    ("instance-store captures", XEN + "root-device-type = instance-store\n",
     META + "block-device-mapping/root", "/dev/sda1"),
    ("captures with a volume detached", MAC + "ebs-volumes = ebs2=sdf, sdg\n",
     META + "block-device-mapping", "ami\nebs2\nebs3\nroot"),
    ("captures with a volume detached", MAC + "ebs-volumes = ebs2=sdf, sdg\n",
     META + "block-device-mapping/ebs3", "sdg"),
    ("m1 captures", XEN + "ephemeral-volumes = ephemeral1=sdc\n",
     META + "block-device-mapping/ephemeral1", "sdc"),
    # Blocks of IPv6.
    ("c6g capture, 2025", NITRO + "ipv6 = 2406:da18:86c:daf1::5\n",
     NIC + "subnet-ipv6-cidr-blocks", "2406:da18:86c:daf1:0:0:0:0/64"),
    ("c6g capture, 2025", NITRO + "ipv6 = 2406:da18:86c:daf1::5\n",
     NIC + "vpc-ipv6-cidr-blocks", "2406:da18:86c:da00:0:0:0:0/56"),
    ("c6g capture, 2025; written as captured",
     NITRO + "subnet-ipv6-cidr-blocks = 2406:da18:86c:daf1:0:0:0:0/64\n",
     NIC + "subnet-ipv6-cidr-blocks", "2406:da18:86c:daf1:0:0:0:0/64"),
    ("Xen captures, 2016-2019", XEN + "ipv6 = 2600:1f16:aeb:b20b::5\n",
     NIC + "subnet-ipv6-cidr-blocks", "2600:1f16:aeb:b20b::/64"),
    ("Xen captures, 2016-2019; written in the other form",
     XEN + "vpc-ipv6-cidr-blocks = 2600:1f16:aeb:b200:0:0:0:0/56\n",
     NIC + "vpc-ipv6-cidr-blocks", "2600:1f16:aeb:b200::/56"),
    ("cloud-init MULTI_NIC_V6_ONLY_MD", ONLY_IPV6, NIC + "vpc-ipv4-cidr-block", "172.31.0.0/16"),
    ("cloud-init MULTI_NIC_V6_ONLY_MD", ONLY_IPV6, NIC + "vpc-ipv4-cidr-blocks", "172.31.0.0/16"),
    ("cloud-init MULTI_NIC_V6_ONLY_MD", ONLY_IPV6, NIC + "subnet-ipv4-cidr-block", None),
    ("cloud-init MULTI_NIC_V6_ONLY_MD", ONLY_IPV6, META + "local-ipv4", None),
    ("every interface lists it", MAC + "vpc-ipv4-cidr-blocks = 10.0.0.0/16\n"
     "[interface a]\nmac = 0e:00:00:00:00:02\nlocal-ipv4 =\nipv6 = 2406:da18:86c:daf1::6\n",
     OTHER + "vpc-ipv4-cidr-blocks", "10.0.0.0/16"),
    # Network cards.
    ("amazon-ec2-net-utils#104", CARDS, NIC + "network-card", "0"),
    ("amazon-ec2-net-utils#104", CARDS, NIC + "device-number", "0"),
    ("amazon-ec2-net-utils#104", CARDS, OTHER + "network-card", "0"),
    ("amazon-ec2-net-utils#104", CARDS, OTHER + "device-number", "1"),
    ("amazon-ec2-net-utils#104", CARDS, THIRD + "network-card", "1"),
    ("amazon-ec2-net-utils#104", CARDS, THIRD + "device-number", "0"),
    ("aws-parallelcluster#6066", CARDS + "device-number = 1\n", THIRD + "device-number", "1"),
    ("t3.nano capture, 2026", MAC, NIC + "network-card", None),
    # Addresses, names, groups, keys.
    ("several public addresses", TWO_PUBLIC, NIC + "public-ipv4s",
     "198.51.100.7\n198.51.100.8\n198.51.100.9"),
    ("several public addresses", TWO_PUBLIC, META + "public-ipv4", "198.51.100.7"),
    ("several public addresses", TWO_PUBLIC, META + "public-hostname",
     "ec2-198-51-100-7.compute-1.amazonaws.com"),
    ("several public addresses", TWO_PUBLIC, NIC + "ipv4-associations",
     "198.51.100.7\n198.51.100.8\n198.51.100.9"),
    ("capture, 2022", TWO_PUBLIC, NIC + "ipv4-associations/198.51.100.7", "10.0.0.5"),
    ("capture, 2022", TWO_PUBLIC, NIC + "ipv4-associations/198.51.100.8", "10.0.0.6"),
    ("capture, 2022", TWO_PUBLIC, NIC + "ipv4-associations/198.51.100.9", "10.0.0.6"),
    ("aws-parallelcluster-cookbook#1127",
     MAC + "local-hostname = ip-192-168-112-168.my.domain eu-west-1.compute.internal\n",
     META + "local-hostname", "ip-192-168-112-168.my.domain eu-west-1.compute.internal"),
    ("bottlerocket#3260, cloud-init#3659", MAC + "local-hostname = ip-10-0-0-5.my.domain.\n",
     META + "hostname", "ip-10-0-0-5.my.domain."),
    ("names of groups may have commas", MAC + 'security-groups = default, "web, db"\n',
     META + "security-groups", "default\nweb, db"),
    ("several public keys", TWO_KEYS, META + "public-keys", "0=first\n1=second key"),
    ("several public keys", TWO_KEYS, META + "public-keys/1", "openssh-key"),
    ("several public keys", TWO_KEYS, META + "public-keys/1/openssh-key",
     "ssh-ed25519 BBBB second key\n"),
    ("capture, 2026-09", MAC + "key-name = one\npublic-key = ssh-rsa AAAA two\n",
     META + "public-keys", "0=one"),
    ("EC2 API, InstanceLifecycleType",
     MAC + "instance-life-cycle = interruptible-capacity-reservation\n",
     META + "instance-life-cycle", "interruptible-capacity-reservation"),
    # Values of one's own.
    ("capture 37254078680", '[metadata]\nhibernation/configured = ""\n',
     META + "hibernation/configured", ""),
    ("capture 37254078680", '[metadata]\nhibernation/configured = ""\n',
     META + "hibernation", "configured"),
    ("ec2-instance-connect, eic_curl_authorized_keys",
     "[metadata]\n/latest/meta-data/managed-ssh-keys/signer-cert = -----BEGIN\n  -----END\n",
     META + "managed-ssh-keys/signer-cert", "-----BEGIN\n-----END"),
    ("elastic inference, AEMM",
     "[metadata]\n/latest/meta-data/elastic-inference/associations/eia-1 = {\"version\":{}}\n",
     META + "elastic-inference/associations/eia-1", '{"version":{}}'),
    # Events.
    ("aws-node-termination-handler#147, spot-termination-exporter#14",
     "[events]\nscheduled-maintenance = 2020-12-01T00:00:00Z instance-stop 2021-01-01T02:00:00Z\n",
     SCHEDULED, """[ {
  "NotBefore" : "1 Jan 2021 02:00:00 GMT",
  "Code" : "instance-stop",
  "Description" : "The instance is running on degraded hardware",
  "EventId" : "instance-event-0944cdf077cbb73fc",
  "State" : "active"
} ]"""),
    ("EC2 User Guide", "[events]\nscheduled-maintenance = +0s instance-stop +1h canceled +0s\n",
     SCHEDULED, "[]"),
    ("a notice that names another time",
     "[events]\nspot-interruption = +0s terminate 2026-12-24T18:00:00Z\n",
     META + "spot/instance-action", '{"action": "terminate", "time": "2026-12-24T18:00:00Z"}'),
    ("a notice that names another time",
     "[events]\nspot-interruption = +0s terminate 2026-12-24T18:00:00Z\n",
     META + "spot/termination-time", "2026-12-24T18:00:00Z"),
    ("a notice that names another time",
     "[events]\nrebalance-recommendation = +0s 2026-12-24T18:00:00Z\n",
     META + "events/recommendations/rebalance", '{"noticeTime": "2026-12-24T18:00:00Z"}'),
    # The instance profile.
    ("vault PR 2802, spire#2796", MAC + "instance-profile = /a/path/to-a-name\n"
     "instance-profile-id = AIPARZPUZDIKM2QYLDYKR\n",
     META + "iam/info", """{
  "Code" : "Success",
  "LastUpdated" : "2026-12-01T08:00:00Z",
  "InstanceProfileArn" : "arn:aws:iam::123456789012:instance-profile/a/path/to-a-name",
  "InstanceProfileId" : "AIPARZPUZDIKM2QYLDYKR"
}"""),
    ("Lightsail", MAC + "instance-profile = arn:aws:iam::752948842220:instance-profile/L/Name\n"
     "instance-profile-id = AIPA26TZ7R3WAAAAAAAAA\n", META + "iam/info", """{
  "Code" : "Success",
  "LastUpdated" : "2026-12-01T08:00:00Z",
  "InstanceProfileArn" : "arn:aws:iam::752948842220:instance-profile/L/Name",
  "InstanceProfileId" : "AIPA26TZ7R3WAAAAAAAAA"
}"""),
]


def text_at(metadata, path):
    """Return the text at a path, None if there is none."""
    found = metadata.find(path)
    return found and found.current().body.decode()


@pytest.mark.parametrize("source, facts, path, text", TREE)
def test_tree(make_metadata, source, facts, path, text):
    """With the facts of a real instance a path has the bytes of that instance."""
    assert text_at(make_metadata(facts), path) == text


HARDWARE = [  # instance type, architecture, system; of DescribeInstanceTypes
    ("t3.micro", "x86_64", "nitro"), ("m7g.large", "arm64", "nitro"),
    ("c6gn.medium", "arm64", "nitro"), ("a1.large", "arm64", "nitro"),
    ("g5g.xlarge", "arm64", "nitro"), ("g4dn.xlarge", "x86_64", "nitro"),
    ("hpc7g.4xlarge", "arm64", "nitro"), ("u7in-16tb.224xlarge", "x86_64", "nitro"),
    ("mac1.metal", "x86_64_mac", "nitro"), ("mac2.metal", "arm64_mac", "nitro"),
    ("mac2-m2pro.metal", "arm64_mac", "nitro"), ("mac-m4.metal", "arm64_mac", "nitro"),
    ("i3.large", "x86_64", "xen"), ("i3.16xlarge", "x86_64", "xen"),
    ("i3.metal", "x86_64", "nitro"), ("i3en.large", "x86_64", "nitro"),
    ("cc1.4xlarge", "x86_64", "xen"), ("cg1.4xlarge", "x86_64", "xen"),
    ("hi1.4xlarge", "x86_64", "xen"), ("t2.nano", "x86_64", "xen"), ("m4.large", "x86_64", "xen"),
    ("x1e.32xlarge", "x86_64", "xen"), ("c5.metal", "x86_64", "nitro"),
]


@pytest.mark.parametrize("instance_type, architecture, system", HARDWARE)
def test_hardware(make_metadata, instance_type, architecture, system):
    """Architecture and hypervisor follow from the type as DescribeInstanceTypes has them."""
    metadata = make_metadata("[instance]\ninstance-type = %s\n" % instance_type)
    document = json.loads(text_at(metadata, fake_metadata.IDENTITY_DOCUMENT))

    assert (document["architecture"], text_at(metadata, META + "system")) == (architecture, system)


ZONES = [  # zone, its id, partition, domain; partitions.json of the SDKs, captures, moto's table
    ("us-east-1a", "use1-az1", "aws", "amazonaws.com"),
    ("eu-west-2a", "euw2-az2", "aws", "amazonaws.com"),
    ("eu-west-2b", "euw2-az3", "aws", "amazonaws.com"),
    ("eu-west-2c", "euw2-az1", "aws", "amazonaws.com"),
    ("ap-south-1a", "aps1-az1", "aws", "amazonaws.com"),
    ("ap-south-1b", "aps1-az3", "aws", "amazonaws.com"),
    ("ap-south-1c", "aps1-az2", "aws", "amazonaws.com"),
    ("eu-central-1a", "euc1-az2", "aws", "amazonaws.com"),
    ("eu-central-1c", "euc1-az1", "aws", "amazonaws.com"),
    ("ap-northeast-3a", "apne3-az3", "aws", "amazonaws.com"),
    ("ca-central-1d", "cac1-az4", "aws", "amazonaws.com"),
    ("eu-west-2d", "euw2-az4", "aws", "amazonaws.com"),
    ("mx-central-1b", "mxc1-az2", "aws", "amazonaws.com"),
    ("us-west-2-lax-1b", "usw2-lax1-az2", "aws", "amazonaws.com"),
    ("eu-central-1-ham-1a", "euc1-ham1-az1", "aws", "amazonaws.com"),
    ("us-east-1-atl-2a", "use1-atl2-az1", "aws", "amazonaws.com"),
    ("eu-west-2-wl2-man-wlz-1", "euw2-wl2-man-wlz1", "aws", "amazonaws.com"),
    ("cn-northwest-1c", "cnnw1-az3", "aws-cn", "amazonaws.com.cn"),
    ("us-gov-east-1a", "usge1-az1", "aws-us-gov", "amazonaws.com"),
    ("us-iso-east-1a", "usie1-az1", "aws-iso", "c2s.ic.gov"),
    ("us-iso-west-1a", "usiw1-az1", "aws-iso", "c2s.ic.gov"),
    ("us-isob-east-1a", "usibe1-az1", "aws-iso-b", "sc2s.sgov.gov"),
    ("eu-isoe-west-1a", "euiew1-az1", "aws-iso-e", "cloud.adc-e.uk"),
    ("us-isof-south-1a", "usifs1-az1", "aws-iso-f", "csp.hci.ic.gov"),
    ("us-isof-east-1a", "usife1-az1", "aws-iso-f", "csp.hci.ic.gov"),
    ("eusc-de-east-1a", "euscdee1-az1", "aws-eusc", "amazonaws.eu"),
]


@pytest.mark.parametrize("zone, zone_id, partition, domain", ZONES)
def test_zone(make_metadata, zone, zone_id, partition, domain):
    """A zone has its id, partition and domain in every partition of AWS."""
    metadata = make_metadata("[instance]\navailability-zone = %s\n" % zone)

    assert [text_at(metadata, META + path) for path in (
        "placement/availability-zone-id", "services/partition", "services/domain"
    )] == [zone_id, partition, domain]


# Every region of partitions.json and endpoints.json of botocore 1.44.
REGIONS = """
af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2
ap-southeast-1 ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6
ap-southeast-7 ca-central-1 ca-west-1 cn-north-1 cn-northwest-1 eu-central-1 eu-central-2
eu-isoe-west-1 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 eusc-de-east-1
il-central-1 me-central-1 me-south-1 me-west-1 mx-central-1 sa-east-1 sa-west-1 us-east-1 us-east-2
us-gov-east-1 us-gov-west-1 us-iso-east-1 us-iso-west-1 us-isob-east-1 us-isob-west-1
us-isof-east-1 us-isof-south-1 us-west-1 us-west-2
""".split()


@pytest.mark.parametrize("region", REGIONS)
def test_region(make_metadata, region):
    """No region that the SDKs know is refused."""
    metadata = make_metadata("[instance]\navailability-zone = %sa\n" % region)

    assert text_at(metadata, META + "placement/region") == region


# Key ids.

def account_of(key_id):
    """Decode the account of a key id, as `aws sts get-access-key-info` reads it back."""
    number = int.from_bytes(base64.b32decode(key_id[4:20])[:6], "big")
    return "%012d" % ((number & 0x7fffffffff80) >> 7)


@pytest.mark.parametrize("account", [
    "123456789012", "000000000000", "999999999999", "752948842220", "104529772138"])
def test_account_of_key_ids(make_metadata, account):
    """Key ids and the id of the instance profile carry the account, at the same place."""
    metadata = make_metadata("[instance]\naccount-id = %s\n" % account)
    keys = json.loads(text_at(metadata, META + "iam/security-credentials/BaseIAMRole"))
    identity = json.loads(text_at(
        metadata, META + "identity-credentials/ec2/security-credentials/ec2-instance"))
    profile = json.loads(text_at(metadata, META + "iam/info"))["InstanceProfileId"]

    ids = [keys["AccessKeyId"], identity["AccessKeyId"], profile]
    assert [account_of(key_id) for key_id in ids] == [account] * 3
    assert len({key_id[4:12] for key_id in ids}) == 1 and len(set(ids)) == 3


@pytest.mark.parametrize("beginning, account", [
    ("26TZ7R3W", "752948842220"), ("RQVTVXZV", "104529772138")])
def test_captured_key_ids(beginning, account):
    """Our ids begin as the captured ones of the same account do."""
    assert fake_metadata.account_characters(account, bytes(5)).startswith(beginning)


def test_ids_of_one_account_differ():
    """What is not the account in a key id comes from the data."""
    ids = {fake_metadata.account_characters("123456789012", bytes([0, 0, n, 0, 0]))
           for n in range(256)}

    assert len(ids) == 256


# Documents of failures, and documents of one's own.

@pytest.mark.parametrize("fault, path, code, message", [
    ("code AssumeRoleUnauthorizedAccess", "iam/security-credentials/BaseIAMRole",
     "AssumeRoleUnauthorizedAccess", "EC2 cannot assume the role BaseIAMRole.  " + HELP),
    ("code InstanceProfileNotFound", "iam/info", "InstanceProfileNotFound",
     "Instance Profile with Id AIPA26TZ7R3WAAAAAAAAA cannot be found.  " + HELP),
    ('code AssumeRoleUnauthorizedAccess message "No, {role}"',
     "iam/security-credentials/BaseIAMRole", "AssumeRoleUnauthorizedAccess", "No, {role}"),
    ("code Other", "iam/info", "Other", "fault x in the configuration of fake-metadata"),
])
def test_failure(make_metadata, fault, path, code, message):
    """A failure on demand has the text of the real one (captures, 2024), or the one that is set."""
    metadata = make_metadata("[faults]\nx = /latest/* %s\n[instance]\n"
                             "instance-profile-id = AIPA26TZ7R3WAAAAAAAAA\n" % fault)

    body = answer_of(metadata, request("GET " + META + path)).partition(b"\r\n\r\n")[2]

    assert body.decode() == """{
  "Code" : "%s",
  "Message" : "%s",
  "LastUpdated" : "2026-12-01T08:00:00Z"
}""" % (code, message)


def test_last_updated_of_a_document_of_ones_own(make_metadata, clock):
    """LastUpdated moves in a document that replaces one, and nothing else does."""
    metadata = make_metadata('[metadata]\niam/info = {\n  "LastUpdated" : "2020-01-01T00:00:00Z",\n'
                             '  "Since" : "2020-01-01T00:00:00Z"}\n')
    texts = []
    for _ in range(2):
        texts.append(text_at(metadata, META + "iam/info"))
        clock.now += 2 * 3600

    assert texts == ['{\n"LastUpdated" : "2026-12-01T%s:00:00Z",\n"Since" : "2020-01-01T00:00:00Z"}'
                     % hour for hour in ("08", "10")]


# The protocol.

PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t\t "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>%s</title>
 </head>
 <body>
  <h1>%s</h1>
 </body>
</html>
"""
PAGE_404 = PAGE % ("404 - Not Found", "404 - Not Found")
PAGE_405 = PAGE % ("405 - Not Allowed", "405 - Not Allowed")
EMPTY = "Content-Length: 0|Date: now|Server: EC2ws|Connection: close|Content-Type: text/plain||"
TTL = "X-aws-ec2-metadata-token-ttl-seconds: 60"
BAD_TOKEN = "X-aws-ec2-metadata-token: INVALID"

EC2 = "[server]\nerror-bodies = ec2\n"
REQUIRED = EC2 + "[metadata-options]\nhttp-tokens = required\n"
DISABLED = EC2 + "[metadata-options]\nhttp-endpoint = disabled\n"

PROTOCOL = [  # source, configuration, request, answer with | for line ends
    ("botocore debug log, 2023; aws-vault#1208", EC2, request("GET /no/such/path", keep=False),
     "HTTP/1.1 404 Not Found|Content-Type: text/html|Content-Length: 339|Date: now|Server: EC2ws|"
     "Connection: close||" + PAGE_404),
    ("capture, 2026-09: HEAD has the length of the body", EC2,
     request("HEAD /no/such/path", keep=False),
     "HTTP/1.1 404 Not Found|Content-Type: text/html|Content-Length: 339|Date: now|Server: EC2ws|"
     "Connection: close||"),
    ("capture, 2020", EC2, request("GET /latest/api/token", keep=False),
     "HTTP/1.1 405 Not Allowed|Allow: OPTIONS, PUT|Content-Type: text/html|Content-Length: 343|"
     "Date: now|Server: EC2ws|Connection: close||" + PAGE_405),
    ("capture, 2020", EC2, request("DELETE /latest/api/token", keep=False),
     "HTTP/1.1 405 Not Allowed|Allow: OPTIONS, PUT|Content-Type: text/html|Content-Length: 343|"
     "Date: now|Server: EC2ws|Connection: close||" + PAGE_405),
    ("capture, 2026-09", REQUIRED, request("GET /", keep=False),
     "HTTP/1.1 401 Unauthorized|" + EMPTY),
    ("capture, 2026-09", EC2, request("GET /", BAD_TOKEN, keep=False),
     "HTTP/1.1 401 Unauthorized|" + EMPTY),
    ("ansible#68098", DISABLED, request("PUT /latest/api/token", TTL, keep=False),
     "HTTP/1.1 403 Forbidden|" + EMPTY),
    ("capture, 2026-09", EC2,
     request("PUT /latest/api/token", TTL, "X-Forwarded-For: 10.0.0.1", keep=False),
     "HTTP/1.1 403 Forbidden|" + EMPTY),
    ("capture, 2026-09", EC2, request("PUT /2021-03-23/api/token", TTL, keep=False),
     "HTTP/1.1 403 Forbidden|" + EMPTY),
    ("capture, 2026-09", EC2, request("POST /latest/meta-data/mac", keep=False),
     "HTTP/1.1 403 Forbidden|" + EMPTY),
    ("capture, 2026-09", EC2, request("PUT /latest/api/token", TTL + "0000", keep=False),
     "HTTP/1.1 400 Bad Request|" + EMPTY),
    ("capture, 2026-09", EC2, request("PUT /latest/api/token", keep=False),
     "HTTP/1.1 400 Bad Request|" + EMPTY),
    ("as of a 400", EC2, b"nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request|" + EMPTY),
    ("aws_credentials#47: no Connection for a client that asks for keep-alive", "",
     request("OPTIONS /latest/api/token"),
     "HTTP/1.1 200 OK|Allow: OPTIONS, PUT|Content-Length: 0|Date: now|Server: EC2ws|"
     "Content-Type: text/plain||"),
    ("cluster-api-provider-aws#1609", "", request("OPTIONS /latest/api/token", keep=False),
     "HTTP/1.1 200 OK|Allow: OPTIONS, PUT|Content-Length: 0|Date: now|Server: EC2ws|"
     "Connection: close|Content-Type: text/plain||"),
    ("capture, 2026-09; no Host: aws-c-auth of 2023", "[instance]\naccount-id = 000000000000\n",
     request("GET /latest/meta-data/instance-life-cycle", host=None, keep=False),
     "HTTP/1.1 200 OK|Content-Type: text/plain|Accept-Ranges: none|"
     "Last-Modified: Tue, 01 Dec 2026 08:00:00 GMT|Content-Length: 9|Date: now|Server: EC2ws|"
     "Connection: close||on-demand"),
]


def answer_of(metadata, data):
    """Return the bytes with which a service answers some bytes."""
    return converse(metadata, fake_metadata.SessionTokens(b"key"), data)[1].sent


@pytest.mark.parametrize("source, config, data, answer", PROTOCOL)
def test_protocol(make_metadata, source, config, data, answer):
    """A request is answered with the bytes of a real instance."""
    assert answer_of(make_metadata(config), data) == answer.replace("|", "\r\n").encode()


@pytest.mark.parametrize("status", [408, 413, 414, 417, 429, 431, 500, 501, 503, 505])
def test_other_refusals(make_metadata, status):
    """What was never captured has no body either with error-bodies = ec2, and its own status."""
    metadata = make_metadata(EC2 + "[faults]\nx = /* status %d\n" % status)

    answer = answer_of(metadata, request("GET /latest/", keep=False))

    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(EMPTY.replace("|", "\r\n").encode())


def test_error_bodies_by_default(make_metadata):
    """By default a refusal has a small JSON document."""
    answer = answer_of(make_metadata(), request("GET /no/such/path", keep=False))

    assert answer.endswith(b'Content-Type: application/json\r\n\r\n{"error": "not found"}')
