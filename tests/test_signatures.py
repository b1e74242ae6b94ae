"""Signatures of the identity document: they verify, the key stays, nobody waits for it."""
import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest

import fake_metadata
from fake_metadata import Signer, make_certificate, make_rsa_key, pem, read_rsa_key
from service import PROGRAM, wait_for, with_limits

IDENTITY = "/latest/dynamic/instance-identity/"
FORMS = ["pkcs7", "rsa2048", "signature"]
QUICK = with_limits(SIGNING_KEY_BITS=1024)
PAIR = make_rsa_key(1024)
OTHER = make_rsa_key(1024)

openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def run_openssl(*arguments, stdin=b""):
    """Run openssl; return what it prints."""
    done = subprocess.run(("openssl",) + arguments, input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def certificate_of(*arguments, **environ):
    """Run --certificate; return (exit code, stdout, stderr)."""
    clean = {key: value for key, value in os.environ.items() if key != "STATE_DIRECTORY"}
    done = subprocess.run([sys.executable, PROGRAM, "--certificate"] + list(arguments),
                          env=dict(clean, **environ), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout, done.stderr


def verify(folder, certificate, document, signed, signature):
    """Verify the three forms with openssl, as AWS documents it; return the signed content."""
    (folder / "certificate.pem").write_text(certificate)
    (folder / "document").write_text(document)
    (folder / "signature").write_bytes(base64.b64decode(signature))
    (folder / "key.pem").write_bytes(run_openssl(
        "x509", "-in", str(folder / "certificate.pem"), "-noout", "-pubkey"))
    run_openssl("dgst", "-sha256", "-verify", str(folder / "key.pem"),
                "-signature", str(folder / "signature"), str(folder / "document"))
    (folder / "signed.pem").write_text(
        "-----BEGIN PKCS7-----\n%s\n-----END PKCS7-----\n" % signed)
    return run_openssl("smime", "-verify", "-in", str(folder / "signed.pem"), "-inform", "PEM",
                       "-certfile", str(folder / "certificate.pem"),
                       "-CAfile", str(folder / "certificate.pem")).decode()


def served(service):
    """Return document, pkcs7, rsa2048 and signature of a service."""
    return [service.get(IDENTITY + name)[2] for name in ["document"] + FORMS]


# Verified.

@openssl
def test_signatures_verify(serve, tmp_path):
    """All forms verify with the certificate of --certificate, and pkcs7 has the document in it."""
    service = serve(env={"STATE_DIRECTORY": str(tmp_path)})
    document, pkcs7, rsa2048, signature = served(service)
    code, certificate, _ = certificate_of(STATE_DIRECTORY=str(tmp_path))

    assert code == 0 and pkcs7 == rsa2048 and len(base64.b64decode(signature)) == 256
    assert verify(tmp_path, certificate, document, pkcs7, signature) == document


@openssl
def test_document_of_ones_own_is_signed(serve, tmp_path):
    """A document in [metadata] that takes the place of the real one is the one that is signed."""
    service = serve("[metadata]\n%sdocument = {\"my\": \"own\"}\n" % IDENTITY,
                    env={"STATE_DIRECTORY": str(tmp_path)})
    document, pkcs7, _, signature = served(service)

    assert document == '{"my": "own"}'
    certificate = certificate_of(STATE_DIRECTORY=str(tmp_path))[1]
    assert verify(tmp_path, certificate, document, pkcs7, signature) == document


@openssl
def test_document_that_changes_is_signed_anew(serve, tmp_path):
    """After a reload the signatures are those of the new document, by the same key."""
    service = serve("", env={"STATE_DIRECTORY": str(tmp_path)}, within=QUICK)
    before = served(service)
    certificate = certificate_of(STATE_DIRECTORY=str(tmp_path))[1]

    service.reload("[instance]\naccount-id = 111122223333\n")

    document, pkcs7, _, signature = served(service)
    assert document != before[0] and signature != before[3]
    assert verify(tmp_path, certificate, document, pkcs7, signature) == document


@openssl
@pytest.mark.parametrize("command", [
    ("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"),
    ("genrsa", "1024"), ("genrsa", "-traditional", "1024")], ids=["PKCS#8", "genrsa", "PKCS#1"])
@pytest.mark.parametrize("with_certificate", [True, False])
def test_key_of_ones_own(serve, tmp_path, command, with_certificate):
    """A key that openssl has made signs, with its certificate or one that is made for it."""
    key, config = tmp_path / "own.key", "[instance-identity]\nkey = %s\n" % (tmp_path / "own.key")
    key.write_bytes(run_openssl(*command))
    if with_certificate:
        run_openssl("req", "-x509", "-new", "-key", str(key), "-subj", "/C=US/O=Mine/CN=mine",
                    "-days", "2", "-out", str(tmp_path / "own.pem"))
        config += "certificate = %s\n" % (tmp_path / "own.pem")
    service = serve(config)
    document, pkcs7, _, signature = served(service)

    code, certificate, _ = certificate_of("--config", service.config_path)

    assert code == 0
    if with_certificate:
        assert run_openssl("x509", stdin=certificate.encode()) == run_openssl(
            "x509", "-in", str(tmp_path / "own.pem"))
    assert verify(tmp_path, certificate, document, pkcs7, signature) == document


@openssl
def test_key_that_is_made(tmp_path):
    """openssl finds nothing wrong with a key of ours."""
    (tmp_path / "key.pem").write_text(make_rsa_key(2048).in_pem())

    assert b"RSA key ok" in run_openssl("rsa", "-check", "-noout", "-in", str(tmp_path / "key.pem"))


# Their form.

def test_form(serve):
    """Signatures are base64 in lines of 76 columns, without armour and final line feed."""
    for text in served(serve(within=QUICK))[1:]:
        lines = text.split("\n")

        assert {len(line) for line in lines[:-1]} == {76} and 0 < len(lines[-1]) <= 76
        assert base64.b64decode(text, validate=False)


def test_headers(serve):
    """A signature is text/plain, like the document."""
    status, headers, _ = serve(within=QUICK).get(IDENTITY + "pkcs7")

    assert (status, headers["Content-Type"]) == (200, "text/plain")


@pytest.mark.parametrize("bits", [1024, 2048])
def test_key_is_read_as_it_was_written(bits):
    """A key is the same after it was written to a file, and has the size that was asked for."""
    key = make_rsa_key(bits)

    assert read_rsa_key(key.in_pem()) == key
    assert key.modulus.bit_length() == bits


def test_certificate_is_always_the_same():
    """Two certificates of one key are equal, those of two keys are not."""
    assert make_certificate(PAIR) == make_certificate(PAIR) != make_certificate(OTHER)


# The key stays.

def test_key_stays(serve, tmp_path):
    """In a state directory the key survives a restart; it is private, and there from the start."""
    service = serve(env={"STATE_DIRECTORY": str(tmp_path)}, within=QUICK)
    path = tmp_path / fake_metadata.IDENTITY_FILE
    wait_for(path.exists)
    before = served(service)
    service.stop()

    assert stat.S_IMODE(os.stat(str(path)).st_mode) == 0o600
    assert served(serve(env={"STATE_DIRECTORY": str(tmp_path)}, within=QUICK)) == before


def test_key_in_memory(serve):
    """Without a state directory the key lasts as long as the process, reloads included."""
    service = serve(within=QUICK)
    before = served(service)

    service.reload("[tags]\nName = x\n")

    assert served(service) == before
    assert served(serve(within=QUICK))[3] != before[3]


def test_state_directory_that_cannot_be_written(serve, tmp_path):
    """Where the key cannot be kept it is in memory, and --certificate says that there is none."""
    nowhere = str(tmp_path / "nowhere")
    service = serve(env={"STATE_DIRECTORY": nowhere}, within=QUICK)

    assert len(served(service)[3]) > 150
    code, said, error = certificate_of(STATE_DIRECTORY=nowhere)
    assert (code, said) == (1, "") and nowhere in error


def test_damaged_file_is_replaced(serve, tmp_path):
    """A file that was damaged is replaced by a new key."""
    path = tmp_path / fake_metadata.IDENTITY_FILE
    path.write_text(PAIR.in_pem()[:200])

    served(serve(env={"STATE_DIRECTORY": str(tmp_path)}, within=QUICK))

    assert read_rsa_key(path.read_text()) != PAIR


def test_certificate_without_a_service():
    """--certificate without anything to print one of says what to do."""
    if os.path.exists(fake_metadata.BOX_IDENTITY):
        pytest.skip("fake-metadata is installed here")
    code, said, error = certificate_of()

    assert (code, said) == (1, "")
    assert "STATE_DIRECTORY" in error and "Traceback" not in error


def test_certificate_makes_the_key(serve, tmp_path):
    """--certificate before the first start makes the key that the service uses then."""
    certificate = certificate_of(STATE_DIRECTORY=str(tmp_path))[1]
    served(serve(env={"STATE_DIRECTORY": str(tmp_path)}, within=QUICK))

    assert certificate_of(STATE_DIRECTORY=str(tmp_path)) == (0, certificate, "")


def test_all_who_start_at_once_have_one_key(serve, tmp_path):
    """Two services and --certificate that make the key at the same time have the same one."""
    kept = {"STATE_DIRECTORY": str(tmp_path)}
    services = [serve(env=kept, wait=False) for _ in range(2)]
    certificate = certificate_of(**kept)[1]
    for service in services:
        service.wait_until_listening()

    assert served(services[0]) == served(services[1])
    assert certificate_of(**kept)[1] == certificate


def test_certificate_after_a_key_of_ones_own(serve, tmp_path):
    """After a reload without the key of one's own --certificate has the kept one, at once."""
    (tmp_path / "own.key").write_text(PAIR.in_pem())
    kept = {"STATE_DIRECTORY": str(tmp_path)}
    service = serve("[instance-identity]\nkey = %s\n" % (tmp_path / "own.key"), env=kept)
    service.reload("")
    path = tmp_path / fake_metadata.IDENTITY_FILE
    wait_for(path.exists)

    assert read_rsa_key(path.read_text()) != PAIR
    assert certificate_of(**kept)[1] in path.read_text()


@pytest.mark.parametrize("is_kept", [True, False])
def test_dump_has_signatures(tmp_path, is_kept):
    """--dump waits for signatures, and shows none that the next start would not have."""
    environ = dict(os.environ, STATE_DIRECTORY=str(tmp_path) if is_kept else "")
    texts = [subprocess.run([sys.executable, PROGRAM, "--dump"], stdout=subprocess.PIPE, check=True,
                            env=environ).stdout.decode() for _ in range(2)]

    shown = [text[text.index(IDENTITY + "signature\n    "):].split("\n")[1].strip()
             for text in texts]
    assert shown[0] == shown[1]
    assert (len(shown[0]) == 76) == is_kept


# Others do not wait.

class SlowSigner(Signer):
    """A Signer whose key takes as long as a test likes."""

    def __init__(self):
        super().__init__(None, self.wait, print, lambda callback: callback())
        self.gate = threading.Event()

    def wait(self, cancelled):
        assert self.gate.wait(30)
        return PAIR, make_certificate(PAIR)


def test_sign_does_not_wait():
    """A signature that is not made yet is None; once it is made it is there, and not made again."""
    signer = SlowSigner()

    assert signer.sign(b"document") is None and signer.pending
    assert signer.sign(b"document") is None
    signer.gate.set()
    signatures = wait_for(lambda: signer.sign(b"document"))
    assert signer.sign(b"document") is signatures
    assert base64.b64decode(signatures.signature) == PAIR.sign(b"document")


def test_signer_that_fails():
    """When the key cannot be made that is said, without a signature, and tried again later."""
    said = []
    now = [100]
    signer = Signer(None, lambda cancelled: 1 // 0, said.append, lambda callback: callback(),
                    clock=lambda: now[0])

    for _ in range(9):
        assert signer.sign(b"document") is None
        wait_for(lambda: not signer.pending)
    assert len(said) == 1 and "ZeroDivisionError" in said[0]

    now[0] += 1
    assert signer.sign(b"document") is None and len(wait_for(lambda: said[1:])) == 1


def test_request_waits_for_the_key(serve):
    """The first request for a signature is answered with it, however long the key takes."""
    service = serve(within=QUICK)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(service.get(IDENTITY + "signature")))
               for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == 1


# The configuration.

def write(path, text):
    path.write_text(text)
    return str(path)


KEY, WANTED = PAIR.in_pem(), "not an RSA private key"
LONG = fake_metadata.RSAKey(*(number << 3073 for number in PAIR)).in_pem()
CERTIFICATE = pem("CERTIFICATE", make_certificate(PAIR))
LARGE = PAIR._replace(prime1=PAIR.prime1 << 64).in_pem()
WRONG = PAIR._replace(exponent1=PAIR.exponent1 + 2).in_pem()
SHORT = fake_metadata.RSAKey(*(number >> 600 for number in PAIR)).in_pem()


NO_CERTIFICATE = "not a certificate"
BAD_KEYS = {  # name -> key, certificate, error; keys are other ones in each run
    "no key": (None, CERTIFICATE, "[instance-identity] certificate: needs its private key"),
    "empty": ("", None, WANTED),
    "no PEM": ("no PEM", None, WANTED),
    "certificate for a key": (CERTIFICATE, None, WANTED),
    "other letters": (KEY.replace("A", "B"), None, WANTED),
    "wrong exponent": (WRONG, None, WANTED),
    "prime too large": (LARGE, None, WANTED),
    "prime of 0": (PAIR._replace(prime2=0).in_pem(), None, WANTED),
    "cut out": (KEY[:300] + KEY[-40:], None, WANTED),
    "short": (SHORT, None, WANTED),
    "long": (LONG, None, WANTED),
    "no ASCII": ("\u00e9" + KEY, None, WANTED),
    "encrypted": (KEY.replace("RSA PRIVATE", "ENCRYPTED PRIVATE"), None, WANTED),
    "PKCS#1 as PKCS#8": (KEY.replace("RSA PRIVATE", "PRIVATE"), None, WANTED),
    "empty certificate": (KEY, "", NO_CERTIFICATE),
    "key for a certificate": (KEY, KEY, NO_CERTIFICATE),
    "certificate of nothing": (KEY, pem("CERTIFICATE", b""), NO_CERTIFICATE),
    "certificate of a number": (KEY, pem("CERTIFICATE", b"0\x03\x02\x01\x00"), NO_CERTIFICATE),
    "certificate of another key": (
        KEY, pem("CERTIFICATE", make_certificate(OTHER)), "certificate: does not belong to the"),
}


@pytest.mark.parametrize("name", list(BAD_KEYS))
def test_bad_key(check, tmp_path, name):
    """A key or a certificate that cannot be used is refused, without showing it."""
    key, certificate, error = BAD_KEYS[name]
    text = "[instance-identity]\n"
    if key is not None:
        text += "key = %s\n" % write(tmp_path / "key", key)
    if certificate is not None:
        text += "certificate = %s\n" % write(tmp_path / "certificate", certificate)

    code, said = check(text)

    assert code == 1 and error in said and said.count("\n") == 1


@pytest.mark.parametrize("path", ["/nowhere", "/", "/dev/zero"])
def test_key_that_cannot_be_read(check, path):
    """A file that cannot be read is named."""
    code, said = check("[instance-identity]\nkey = %s\n" % path)

    assert code == 1 and "[instance-identity] key: %s: " % path in said


def test_signatures_of_the_whole_configuration(make_metadata):
    """The identity document is what it was, without signatures in it."""
    document = make_metadata().find(IDENTITY + "document").current()

    assert "signature" not in json.loads(document.body.decode())
