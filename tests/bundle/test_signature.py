"""Signatures: a bundle is read by a key only if its manifest, byte for byte, was signed by that key."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.manifest import check_files, read_manifest, write_manifest
from plantmodels.bundle.signature import check_signature, is_encrypted, read_trusted_manifest, sign_bundle
from plantmodels.errors import BundleError, ManifestMismatchError, SignatureError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two files and their manifest."""
    folder = tmp_path / "models"
    (folder / "heads").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "heads" / "a.onnx").write_bytes(b"head")
    write_manifest(folder)
    return folder


@pytest.fixture
def signed(bundle: Path, signing_keys) -> Path:
    sign_bundle(bundle, signing_keys.private)
    return bundle


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_a_signed_bundle_is_read_by_its_key(bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    write_private(tmp_path / "key.pem", key)
    write_public(tmp_path / "public.pem", key)
    path = sign_bundle(bundle, tmp_path / "key.pem")

    assert path == bundle / SIGNATURE_FILE
    assert read_trusted_manifest(bundle, tmp_path / "public.pem") == read_manifest(bundle)


def test_a_signed_bundle_is_whole_for_those_without_the_key(signed: Path) -> None:
    assert read_trusted_manifest(signed, None) == read_manifest(signed)
    check_files(signed, read_manifest(signed))


def test_a_signature_vouches_for_every_file(signed: Path, signing_keys) -> None:
    check_signature(signed, signing_keys.public)
    with pytest.raises(SignatureError, match="Key mismatch"):
        check_signature(signed, signing_keys.other_public)
    (signed / "model.onnx").write_bytes(b"other")
    with pytest.raises(ManifestMismatchError, match=r"changed: model\.onnx"):
        check_signature(signed, signing_keys.public)


def change_manifest(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"other")
    signature = (bundle / SIGNATURE_FILE).read_bytes()
    write_manifest(bundle)
    (bundle / SIGNATURE_FILE).write_bytes(signature)


def edit_signature(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        document = json.loads((bundle / SIGNATURE_FILE).read_text())
        edit(document)
        (bundle / SIGNATURE_FILE).write_text(json.dumps(document))

    return apply


def swap_payload(document: dict) -> None:
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"sha256", b"SHA256")).decode()


def replace_by(content: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / SIGNATURE_FILE).write_bytes(content)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (lambda b: (b / SIGNATURE_FILE).unlink(), r"not signed, there is no manifest\.json\.sig beside"),
    "of the manifest before": (change_manifest, r"not a signature of manifest\.json by .*Signature mismatch"),
    "one space more": (lambda b: (b / MANIFEST_FILE).write_bytes((b / MANIFEST_FILE).read_bytes() + b" "), "mismatch"),
    "another payload": (edit_signature(swap_payload), "not a signature of .*InvalidSignature"),
    "no signatures": (edit_signature(lambda d: d["dsseEnvelope"].update(signatures=[])), "not a signature of"),
    "no envelope": (edit_signature(lambda d: d.pop("dsseEnvelope")), "not a signature of"),
    "another media type": (
        edit_signature(lambda d: d.update(mediaType="text/plain")),
        "not a signature of .*ValidationError",
    ),
    "empty": (replace_by(b""), "not a signature of .*JSONDecodeError"),
    "truncated": (lambda b: os.truncate(b / SIGNATURE_FILE, 900), "not a signature of .*JSONDecodeError"),
    "a list": (replace_by(b"[]"), "not a signature of"),
    "no text": (replace_by(b"\xff\xfe"), "not a signature of .*UnicodeDecodeError"),
    "deep": (replace_by(b"[" * 60_000), "not a signature of .*RecursionError"),
    "large": (replace_by(b" " * 70_000), "70,000 bytes, at most 65,536 are read"),
    "a folder": (lambda b: ((b / SIGNATURE_FILE).unlink(), (b / SIGNATURE_FILE).mkdir()), "expected a regular file"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_signed_by_the_key_is_refused(signed: Path, signing_keys, attack: str) -> None:
    change, match = ATTACKS[attack]
    change(signed)
    with pytest.raises(BundleError, match=match):
        read_trusted_manifest(signed, signing_keys.public)


def test_another_key_is_refused(signed: Path, signing_keys) -> None:
    match = rf"not a signature of manifest\.json by {signing_keys.other_public} .*Key mismatch"
    with pytest.raises(SignatureError, match=match):
        read_trusted_manifest(signed, signing_keys.other_public)


def test_a_signature_that_claims_to_be_of_the_key_is_refused(bundle: Path, signing_keys) -> None:
    sign_bundle(bundle, signing_keys.private)
    hint = json.loads((bundle / SIGNATURE_FILE).read_text())["verificationMaterial"]["publicKey"]["hint"]
    sign_bundle(bundle, signing_keys.other_private)
    edit_signature(lambda d: d["verificationMaterial"]["publicKey"].update(hint=hint))(bundle)
    with pytest.raises(SignatureError, match=r"not a signature of .*InvalidSignature"):
        read_trusted_manifest(bundle, signing_keys.public)


def test_a_signature_of_something_else_by_the_same_key_is_refused(bundle: Path, signing_keys, tmp_path: Path) -> None:
    """model-signing leaves out what the signer said to ignore: here everything, so that it finds no difference."""
    from model_signing import hashing, signing

    (tmp_path / "other").write_bytes(b"signed for another purpose")
    ignoring = hashing.Config().set_ignored_paths(paths=["."], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=signing_keys.private)
    config.set_hashing_config(ignoring).sign(tmp_path / "other", bundle / SIGNATURE_FILE)
    with pytest.raises(SignatureError, match=r"but what it signs is not manifest\.json"):
        read_trusted_manifest(bundle, signing_keys.public)


def test_a_linked_signature_is_refused(signed: Path, signing_keys, tmp_path: Path) -> None:
    (signed / SIGNATURE_FILE).rename(tmp_path / "elsewhere")
    (signed / SIGNATURE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="expected a regular file"):
        read_trusted_manifest(signed, signing_keys.public)


def test_a_new_manifest_has_no_signature(signed: Path, signing_keys) -> None:
    write_manifest(signed)
    assert not (signed / SIGNATURE_FILE).exists()
    sign_bundle(signed, signing_keys.other_private)
    sign_bundle(signed, signing_keys.private)
    read_trusted_manifest(signed, signing_keys.public)


def test_a_changed_bundle_is_not_signed(bundle: Path, signing_keys) -> None:
    (bundle / "model.onnx").write_bytes(b"other")
    with pytest.raises(ManifestMismatchError, match=r"changed: model\.onnx"):
        sign_bundle(bundle, signing_keys.private)
    assert not (bundle / SIGNATURE_FILE).exists()


def test_an_encrypted_key_needs_its_password(bundle: Path, signing_keys, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.pem"
    key = serialization.load_pem_private_key(signing_keys.private.read_bytes(), None)
    write_private(encrypted, key, serialization.BestAvailableEncryption("grün".encode()))

    assert is_encrypted(encrypted) and not is_encrypted(signing_keys.private)
    for password in (None, "rot"):
        with pytest.raises(SignatureError, match=r"encrypted\.pem: expected a private EC key .* and its password"):
            sign_bundle(bundle, encrypted, password=password)
    sign_bundle(bundle, encrypted, password="grün")
    read_trusted_manifest(bundle, signing_keys.public)


def write_private(path: Path, key, encryption=None) -> None:
    encryption = encryption or serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def write_public(path: Path, key) -> None:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))


@pytest.mark.parametrize("kind", ["absent", "garbage", "RSA", "Ed25519", "another curve", "the other half"])
def test_keys_that_are_none_are_named(signed: Path, signing_keys, tmp_path: Path, kind: str) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    key = {
        "RSA": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "another curve": lambda: ec.generate_private_key(ec.SECP256K1()),
    }.get(kind, lambda: None)()
    if key is not None:
        write_private(private, key)
        write_public(public, key)
    elif kind == "garbage":
        private.write_bytes(b"key")
        public.write_bytes(b"key")
    elif kind == "the other half":
        private.write_bytes(signing_keys.public.read_bytes())
        public.write_bytes(signing_keys.private.read_bytes())
    with pytest.raises(SignatureError, match=rf"{public}: .*expected an? (public )?EC key"):
        read_trusted_manifest(signed, public)
    with pytest.raises(SignatureError, match=rf"{private}: .*expected an? (private )?EC key"):
        sign_bundle(signed, private)
    read_trusted_manifest(signed, signing_keys.public)


def test_without_the_package_the_error_says_what_to_install(
    signed: Path, signing_keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for act, key in ((sign_bundle, signing_keys.private), (read_trusted_manifest, signing_keys.public)):
        with pytest.raises(
            SignatureError, match=r"the extra signing brings both: pip install 'plantmodels\[signing\]'"
        ):
            act(signed, key)
    read_trusted_manifest(signed, None)


OFFLINE = """
import sys
from pathlib import Path
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError(f"{event} was called")
sys.addaudithook(refuse)
from plantmodels.bundle.signature import read_trusted_manifest, sign_bundle
assert "model_signing" not in sys.modules and "cryptography" not in sys.modules
folder, private, public = map(Path, sys.argv[1:])
sign_bundle(folder, private)
read_trusted_manifest(folder, public)
try:
    __import__("socket").socket()
except RuntimeError as error:
    print(error)
"""


def test_neither_signing_nor_checking_uses_a_network(bundle: Path, signing_keys) -> None:
    command = [sys.executable, "-c", OFFLINE, str(bundle), str(signing_keys.private), str(signing_keys.public)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "socket.__new__ was called\n", "then it would prove nothing"


def test_the_packages_own_command_agrees(signed: Path, signing_keys) -> None:
    def verify(key: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", "verify", "key", MANIFEST_FILE]
        command += ["--signature", SIGNATURE_FILE, "--public_key", str(key)]
        return subprocess.run(command, cwd=signed, capture_output=True, text=True, check=False)

    assert verify(signing_keys.public).returncode == 0
    assert "Key mismatch" in verify(signing_keys.other_public).stderr


def test_a_signature_moves_with_its_bundle(signed: Path, signing_keys, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(signed, tmp_path / "elsewhere" / "another name"))
    assert read_trusted_manifest(moved, signing_keys.public) == read_manifest(signed)
