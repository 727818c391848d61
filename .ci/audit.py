"""Licences and known vulnerabilities of the pinned packages; `make audit`, part of `make check`.

Licences are read from the installed packages and held against `ALLOWED`; ``--write`` puts the list into
docs/licences.md. Vulnerabilities are asked of OSV by pip-audit; where OSV cannot be reached, or pip-audit is not there,
that is said and passed over: an audit that needs a network must not stop work without one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "docs" / "licences.md"

ALLOWED = {
    "Apache-2.0": r"apache",
    "MIT": r"\bmit\b",
    "BSD": r"bsd\b",
    "PSF-2.0": r"\bpsf\b|python software foundation|python-2\.0",
    "ISC": r"\bisc\b",
    "MPL-2.0": r"\bmpl\b|mozilla public",
    "Unlicense": r"unlicense|public domain",
    "HPND": r"\bhpnd\b|historical permission|mit-cmu",
    "Zlib": r"\bzlib\b",
    "CC0-1.0": r"\bcc0\b",
    "BSL-1.0": r"\bbsl-1\.0|boost software",
    "CNRI-Python": r"cnri-python",
}
"""what may be used beside this project's Apache-2.0: permissive licences, and MPL-2.0, whose duties end at its files"""
HEAD = """\
# Licences of the pinned packages

Made by `python .ci/audit.py --write` from the metadata of installed packages; `make audit` fails on any other licence.
NVIDIA's packages and triton, which come with CUDA builds of torch, are not in constraints.txt and so not in this list.

| package | licence |
| --- | --- |
"""
FORBIDDEN = r"\b[al]?gpl|affero|general public|lesser general|commons clause|non-?commercial|proprietary|sspl|\bbusl\b"


def pinned() -> dict[str, str]:
    """Every package of constraints.txt with its version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def licence(name: str) -> str | None:
    """The allowed licence that an installed package states; None if it states none, or another one.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    package = metadata.metadata(name)
    classifiers = [
        re.sub(r"\(.*\)", "", text.rpartition(" :: ")[2])  # what is in brackets abbreviates what stands before
        for text in package.get_all("Classifier") or []
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    stated = package.get("License-Expression") or "; ".join(classifiers) or first_line(package.get("License")) or ""
    return allowed(stated)


def allowed(stated: str) -> str | None:
    """The short names of a statement's licences, if all of them are allowed; of "A or B" one will do.

    Classifiers stand one after the other, with semicolons; all of them count.
    """
    for choice in re.split(r"\bor\b", stated, flags=re.IGNORECASE):
        parts = [part for part in re.split(r"\band\b|[;(),]", choice, flags=re.IGNORECASE) if part.strip()]
        names = [short_name(part) for part in parts]
        if names and all(names):
            return ", ".join(dict.fromkeys(name for name in names if name))
    return None


def short_name(part: str) -> str | None:
    """One licence by its short name, if it is allowed."""
    if re.search(FORBIDDEN, part, re.IGNORECASE):
        return None
    return next((short for short, pattern in ALLOWED.items() if re.search(pattern, part, re.IGNORECASE)), None)


def first_line(text: str | None) -> str | None:
    """A licence's name; some packages put its whole text there."""
    return text.strip().splitlines()[0] if text and text.strip() else None


def licences() -> dict[str, str | None]:
    """Of every pinned package that is installed; None where it is not allowed."""
    found = {}
    for name in pinned():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = licence(name)
    return found


def listed() -> dict[str, str]:
    """What docs/licences.md says."""
    text = LIST.read_text(encoding="utf-8") if LIST.is_file() else ""
    rows = re.findall(r"^\| ([\w.-]+) \| (.+) \|$", text, re.MULTILINE)
    return {name: stated for name, stated in rows if name not in ("package", "---")}


def write_list(found: Mapping[str, str | None]) -> None:
    """Renew the list; a pinned package that is not installed here keeps its line."""
    rows = {name: stated for name, stated in listed().items() if name in pinned()}
    rows |= {name: stated for name, stated in found.items() if stated}
    lines = [f"| {name} | {rows[name]} |" for name in sorted(rows, key=str.lower)]
    LIST.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def outdated(found: Mapping[str, str | None]) -> list[str]:
    """Packages about which the list is wrong: not in it, with another licence, or no longer pinned."""
    lines = listed()
    wrong = [name for name, stated in found.items() if stated and lines.get(name) != stated]
    return wrong + [name for name in lines if name not in pinned()]


def vulnerabilities() -> tuple[list[str], str]:
    """A line for each known vulnerability, and a remark if nothing, or not everything, could be looked up."""
    if importlib.util.find_spec("pip_audit") is None:
        return [], "skipped: pip-audit is not installed"
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt"), "--no-deps"]
    command += ["--disable-pip", "--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return [], "skipped: the advisories did not come within 5 minutes"
    return read_report(done.stdout)


def read_report(text: str) -> tuple[list[str], str]:
    """As `vulnerabilities`, from what pip-audit printed: JSON, or nothing where OSV could not be reached."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError):
        return [], "skipped: the advisory source cannot be reached"
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return [], "skipped: the advisory source knows none of the packages"
    found = [
        f"{package['name']} {package['version']}: {entry['id']}, mended in {', '.join(entry['fix_versions']) or 'none'}"
        for package in packages
        for entry in package.get("vulns", [])
    ]
    return found, f"not looked up: {', '.join(skipped)}" if skipped else ""


def main(arguments: list[str]) -> int:
    """Check both; 1 if a licence is not allowed, the list is out of date, or a vulnerability is known."""
    found = licences()
    if "--write" in arguments:
        write_list(found)
    denied, wrong = [name for name, stated in found.items() if not stated], outdated(found)
    known, remark = vulnerabilities() if "--offline" not in arguments else ([], "skipped: --offline")
    for name in denied:
        print(f"licence of {name}: not stated, or none of {', '.join(ALLOWED)}")
    if wrong:
        print(f"docs/licences.md is out of date for {', '.join(wrong)}; run python .ci/audit.py --write")
    for line in known:
        print(f"vulnerability: {line}")
    print(f"licences: {len(found)} packages, {len(denied)} denied")
    print(f"advisories: {len(known)} known vulnerabilities" + (f"; {remark}" if remark else ""))
    return int(bool(denied or wrong or known))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
