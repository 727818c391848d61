"""The licence list and the reading of advisories; no network is asked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert _spec is not None
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)  # type: ignore[union-attr]


def test_every_installed_package_has_an_allowed_licence_and_the_list_is_current():
    found = audit.licences()
    assert len(found) > 50
    assert [name for name, stated in found.items() if not stated] == []
    assert audit.outdated(found) == []
    assert set(audit.listed()) == set(audit.pinned())


def test_a_list_that_is_out_of_date_is_seen_and_mended(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "LIST", tmp_path / "licences.md")
    monkeypatch.setattr(audit, "pinned", lambda: {"a": "1", "b": "1", "not-here": "1"})
    audit.LIST.write_text(audit.HEAD + "| a | MIT |\n| not-here | BSD |\n| gone | MIT |\n")
    assert audit.outdated({"a": "BSD", "b": "MIT"}) == ["a", "b", "gone"]
    audit.write_list({"a": "BSD", "b": "MIT"})
    assert audit.listed() == {"a": "BSD", "b": "MIT", "not-here": "BSD"}
    assert audit.outdated({"a": "BSD", "b": "MIT"}) == []


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("MIT", "MIT"),
        ("BSD-3-Clause AND MIT", "BSD, MIT"),
        ("Apache Software License; MIT License", "Apache-2.0, MIT"),
        ("GPL-2.0 OR MIT", "MIT"),
        ("MIT AND GPL-3.0-only", None),
        ("GNU General Public License v3", None),
        ("AGPL-3.0", None),
        ("LGPL-2.1+", None),
        ("BSD License; GNU Lesser General Public License v2", None),
        ("Some Proprietary License", None),
        ("MIT AND Something-New", None),
        ("", None),
    ],
)
def test_statements(stated, found):
    assert audit.allowed(stated) == found


def package(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "version": "1", "vulns": [], **more}


def test_advisories():
    bad = package("b", vulns=[{"id": "PYSEC-1", "fix_versions": ["2"]}])
    report = {"dependencies": [package("a"), bad, package("c", skip_reason="?")]}
    assert audit.read_report(json.dumps(report)) == (["b 1: PYSEC-1, mended in 2"], "not looked up: c")
    assert audit.read_report(json.dumps({"dependencies": [package("a")]})) == ([], "")


@pytest.mark.parametrize("text", ["", "Traceback ...", '{"dependencies": [{"name": "a", "skip_reason": "?"}]}'])
def test_no_answer_is_said_and_is_no_clean_bill(text):
    found, remark = audit.read_report(text)
    assert found == []
    assert remark.startswith("skipped: ")


def test_a_known_vulnerability_or_a_denied_licence_fails(monkeypatch, capsys):
    monkeypatch.setattr(audit, "licences", dict)
    assert audit.main(["--offline"]) == 0
    monkeypatch.setattr(audit, "vulnerabilities", lambda: (["b 1: PYSEC-1"], ""))
    assert audit.main([]) == 1
    assert "vulnerability: b 1: PYSEC-1" in capsys.readouterr().out
    monkeypatch.setattr(audit, "licences", lambda: {"b": None})
    assert audit.main(["--offline"]) == 1
    assert "licence of b: not stated" in capsys.readouterr().out


def test_without_pip_audit_it_is_said(monkeypatch):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    assert audit.vulnerabilities() == ([], "skipped: pip-audit is not installed")
