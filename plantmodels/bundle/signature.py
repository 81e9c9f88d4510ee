"""A signature of a bundle's manifest, which names size and SHA-256 of every file, so that it is one of all of them.

It is made and checked by the package model-signing with a pair of elliptic-curve keys (P-256, P-384 or P-521, PEM),
without network or service; its own command checks `manifest.json` against `manifest.json.sig` as well. Only these
functions import it, and only when they are called: it is not needed for anything else.

>>> sign_bundle(folder, Path("key.pem"))              # doctest: +SKIP
>>> read_trusted_manifest(folder, Path("public.pem"))  # doctest: +SKIP

References:
    OpenSSF Model Signing, https://github.com/sigstore/model-transparency: DSSE over an in-toto statement.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import read_bytes, write_bytes
from plantmodels.bundle.layout import MANIFEST_FILE, SIGNATURE_FILE
from plantmodels.bundle.manifest import Manifest, check_files, parse_manifest, read_manifest_bytes
from plantmodels.bundle.temporary import temporary_folder
from plantmodels.errors import SignatureError

_MAX_BYTES: Final = 64 * 2**10
"""One that model-signing makes has 2 KB."""

_KEYS: Final = "EC key of the curve P-256, P-384 or P-521 in PEM form"


def is_encrypted(private_key: Path) -> bool:
    """Whether a key needs a password.

    Raises:
        SignatureError: the file cannot be read.
    """
    return b"ENCRYPTED" in _read_key(private_key)


def sign_bundle(folder: Path, private_key: Path, *, password: str | None = None) -> Path:
    """Checks every file and signs the manifest; an older signature is replaced.

    Args:
        folder: the bundle. Whatever rewrites its manifest, as `verify` does, removes the signature.
        private_key: file of the key.
        password: of a key that is encrypted.

    Returns:
        The signature's file.

    Raises:
        BundleError: files that are not those of the manifest.
        SignatureError: no such key, another kind of key, a wrong password, or model-signing is not installed.
    """
    content = read_manifest_bytes(folder)
    check_files(folder, parse_manifest(folder, content))
    signing = _model_signing().signing
    _read_key(private_key)
    try:
        # bytes, although model-signing 1.1.1 declares text: it hands the password on to what takes bytes only
        secret = None if password is None else password.encode()
        signer = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:  # those of model-signing and cryptography have no base of their own
        raise SignatureError(f"{private_key}: expected a private {_KEYS}, and its password ({error})") from error
    with temporary_folder("sign") as temporary:
        manifest, signature = temporary / MANIFEST_FILE, temporary / SIGNATURE_FILE
        manifest.write_bytes(content)
        signer.sign(manifest, signature)
        write_bytes(folder / SIGNATURE_FILE, signature.read_bytes())
    return folder / SIGNATURE_FILE


def read_trusted_manifest(folder: Path, public_key: Path | None) -> Manifest:
    """Reads `manifest.json`, once, and checks its signature where a key is given; looks at no other file.

    Raises:
        BundleError: absent, or not a manifest.
        SignatureError: it does not bear this key's signature.
    """
    content = read_manifest_bytes(folder)
    if public_key is not None:
        check_signature(folder, content, public_key)
    return parse_manifest(folder, content)


def check_signature(folder: Path, manifest: bytes, public_key: Path) -> None:
    """Refuses a bundle whose manifest does not bear a key's signature; looks at no other file.

    Args:
        folder: of the bundle, where the signature lies.
        manifest: the content of `manifest.json` that is going to be used.
        public_key: file of the key.

    Raises:
        SignatureError: no signature, one of another content or key, or not one at all; no such key; or model-signing
            is not installed.
    """
    path = folder / SIGNATURE_FILE
    if not path.exists():
        raise SignatureError(f"{folder}: not signed, there is no {SIGNATURE_FILE} beside {MANIFEST_FILE}")
    content = read_bytes(path, _MAX_BYTES)
    verifying = _model_signing().verifying
    _read_key(public_key)
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:  # those of model-signing and cryptography have no base of their own
        raise SignatureError(f"{public_key}: expected a public {_KEYS} ({error})") from error
    with temporary_folder("signature") as temporary:
        copies = temporary / MANIFEST_FILE, temporary / SIGNATURE_FILE
        for copy, data in zip(copies, (manifest, content), strict=True):
            copy.write_bytes(data)
        try:
            verifier.verify(*copies)
            signed = _signed_digests(content)
        except Exception as error:  # whatever a hostile file makes of the parser, it is no signature
            reason = f"{type(error).__name__} {' '.join(str(error).split())[:120]}".strip()
            raise SignatureError(f"{path}: not a signature of {MANIFEST_FILE} by {public_key} ({reason})") from error
    if signed != [hashlib.sha256(manifest).hexdigest()]:
        raise SignatureError(f"{path}: a signature by {public_key}, but of something else than {MANIFEST_FILE}")


def _signed_digests(signature: bytes) -> list[str]:
    """What a signature that was checked is about; model-signing leaves out paths that the signer said to ignore."""
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return [resource["digest"] for resource in payload["predicate"]["resources"]]


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read ({error.strerror}), expected an {_KEYS}") from error


def _model_signing() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise SignatureError(
            f"signatures need the packages model-signing and pyOpenSSL: pip install model-signing pyOpenSSL ({error})"
        ) from error
    return model_signing
