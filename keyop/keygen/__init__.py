"""Certificates for instances: an authority of one's own, what it signs, and what it takes back."""

from keyop.keygen.authority import (
    DEFAULT_DAYS,
    MAX_DAYS,
    Authority,
    Issued,
    create_authority,
    issue,
    load_authority,
)
from keyop.keygen.description import (
    CertificateInfo,
    Info,
    KeyInfo,
    RevocationListInfo,
    describe_file,
)
from keyop.keygen.development import (
    CertificateFiles,
    DevelopmentCertificates,
    ensure_development_certificates,
)
from keyop.keygen.files import write_files
from keyop.keygen.hosts import alternative_names, file_stem, is_host
from keyop.keygen.pem import load_certificate
from keyop.keygen.revocation import Revocation, revoke

__all__ = [
    "DEFAULT_DAYS",
    "MAX_DAYS",
    "Authority",
    "CertificateFiles",
    "CertificateInfo",
    "DevelopmentCertificates",
    "Info",
    "Issued",
    "KeyInfo",
    "Revocation",
    "RevocationListInfo",
    "alternative_names",
    "create_authority",
    "describe_file",
    "ensure_development_certificates",
    "file_stem",
    "is_host",
    "issue",
    "load_authority",
    "load_certificate",
    "revoke",
    "write_files",
]
