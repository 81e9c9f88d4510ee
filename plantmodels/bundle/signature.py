"""Signatures of bundles: a signature covers the manifest, which names size and SHA-256 of every file.

The package model-signing makes and checks them with a pair of elliptic-curve keys (P-256, P-384 or P-521, in PEM
form), without a network or a service. Its own command can check `manifest.json` against `manifest.json.sig` too. It is
imported only when one of these functions is called with a key.

References:
    OpenSSF Model Signing, https://github.com/sigstore/model-transparency: DSSE over an in-toto statement.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import StrPath, read_bytes, write_bytes
from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.manifest import Manifest, check_files, parse_manifest, read_manifest_bytes
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import SignatureError
from plantmodels.foreign_text import quote_error

_MAX_BYTES: Final = 64 * 2**10
"""Largest signature file that is read; model-signing writes 2 KB."""

_KEYS: Final = "EC key of the curve P-256, P-384 or P-521 in PEM form"


def is_encrypted(private_key: Path) -> bool:
    """Return whether a key needs a password.

    Raises:
        SignatureError: the file cannot be read.
    """
    return b"ENCRYPTED" in _read_key(private_key)


def sign_bundle(bundle: StrPath, private_key: StrPath, *, password: str | None = None) -> Path:
    """Check every file of a bundle, sign its manifest, and return the path of the signature.

    An older signature is replaced. Whatever rewrites the manifest, as `verify_bundle` does, removes the signature.

    Args:
        bundle: the bundle's folder.
        private_key: file of the private key.
        password: the key's password, if it is encrypted.

    Raises:
        BundleError: files differ from the manifest.
        SignatureError: the key is missing or of another kind, the password is wrong, or model-signing is not
            installed.
    """
    bundle, private_key = Path(bundle), Path(private_key)
    content = read_manifest_bytes(bundle)
    check_files(bundle, parse_manifest(bundle, content))
    signing = _import_model_signing().signing
    _read_key(private_key)
    try:
        # bytes, although model-signing 1.1.1 declares text: it passes the password on to a function that takes bytes
        secret = None if password is None else password.encode()
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:  # the errors of model-signing and cryptography have no base class of their own
        raise SignatureError(
            f"{private_key}: expected a private {_KEYS}, and its password ({quote_error(error)})"
        ) from error
    with temporary_folder("sign") as temporary:
        manifest, signature = temporary / MANIFEST_FILE, temporary / SIGNATURE_FILE
        manifest.write_bytes(content)
        signer.sign(manifest, signature)
        write_bytes(bundle / SIGNATURE_FILE, signature.read_bytes())
    return bundle / SIGNATURE_FILE


def check_signature(bundle: StrPath, public_key: StrPath) -> None:
    """Raise unless a bundle is signed by a key and every file is the one that was signed.

    Args:
        bundle: the bundle's folder.
        public_key: file of the public key.

    Raises:
        SignatureError: the signature is missing or not made by this key, or as `check_manifest_signature`.
        BundleError: files differ from the manifest.
    """
    bundle = Path(bundle)
    check_files(bundle, read_trusted_manifest(bundle, Path(public_key)))


def read_trusted_manifest(folder: Path, public_key: Path | None) -> Manifest:
    """Read `manifest.json`, once, and check its signature if a key is given; looks at no other file.

    Raises:
        BundleError: the manifest is missing or malformed.
        SignatureError: the manifest is not signed by this key.
    """
    content = read_manifest_bytes(folder)
    if public_key is not None:
        check_manifest_signature(folder, content, public_key)
    return parse_manifest(folder, content)


def check_manifest_signature(folder: Path, manifest: bytes, public_key: Path) -> None:
    """Raise unless the content of a manifest is signed by a key; looks at no file but the signature.

    Args:
        folder: the bundle's folder, which holds the signature.
        manifest: the content of `manifest.json` that the caller is going to use.
        public_key: file of the public key.

    Raises:
        SignatureError: the signature is missing, malformed, made for another content or by another key; the key cannot
            be read; or model-signing is not installed.
    """
    _read_key(public_key)
    path = folder / SIGNATURE_FILE
    if not path.exists():
        raise SignatureError(f"{folder}: not signed, there is no {SIGNATURE_FILE} beside {MANIFEST_FILE}")
    content = read_bytes(path, _MAX_BYTES)
    verifying = _import_model_signing().verifying
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # the errors of model-signing and cryptography have no base class of their own
        raise SignatureError(f"{public_key}: expected a public {_KEYS} ({quote_error(error)})") from error
    with temporary_folder("signature") as temporary:
        copies = temporary / MANIFEST_FILE, temporary / SIGNATURE_FILE
        for copy, data in zip(copies, (manifest, content), strict=True):
            copy.write_bytes(data)
        try:
            verifier.verify(*copies)
            signed = _read_signed_digests(content)
        except Exception as error:  # a hostile file may raise anything inside the parser; then it is not a signature
            reason = f"{type(error).__name__}: {quote_error(error)}"
            raise SignatureError(f"{path}: not a signature of {MANIFEST_FILE} by {public_key} ({reason})") from error
    if signed != [hashlib.sha256(manifest).hexdigest()]:
        raise SignatureError(f"{path}: signed by {public_key}, but what it signs is not {MANIFEST_FILE}")


def _read_signed_digests(signature: bytes) -> list[str]:
    """Return the digests that a checked signature covers.

    model-signing accepts a signature that covers nothing, because it skips the paths that the signer said to ignore.
    """
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return [resource["digest"] for resource in payload["predicate"]["resources"]]


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read ({error.strerror}), expected an {_KEYS}") from error


def _import_model_signing() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise SignatureError(
            "signatures need model-signing and pyOpenSSL; the extra signing brings both: "
            f"pip install 'plantmodels[signing]' ({error})"
        ) from error
    return model_signing
