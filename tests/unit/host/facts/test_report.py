"""All facts together: JSON and back, a schema that stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hearth.core.errors import ConfigError
from hearth.host.facts.report import SCHEMA, from_json, read_host, to_json


def test_the_facts_of_this_machine_go_through_json() -> None:
    facts = read_host(Path("/"))
    data = to_json(facts)
    assert from_json(data) == facts
    assert json.loads(data)["schema"] == SCHEMA


def test_another_schema_and_what_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"schema {SCHEMA + 1}; this version reads {SCHEMA}"):
        from_json(b'{"schema": %d}' % (SCHEMA + 1))
    for data in (b"", b"[]", b"{}", b'{"schema": 1}', b"\xff"):
        with pytest.raises(ConfigError, match="no facts"):
            from_json(data)
