"""Every recorded run of the book has a record, made by the code as it is now."""

import pytest

from lab import runs


@pytest.mark.parametrize("name", runs.names())
def test_no_record_is_stale(name):
    changed = runs.changed(name)
    assert not changed, f"{', '.join(changed)} changed since: python -m lab.runs {name}"


def test_no_record_without_its_script():
    records = {file.with_suffix("") for file in runs.ROOT.glob("book/*/runs/*.json")}
    scripts = {file.with_suffix("") for file in runs.ROOT.glob("book/*/runs/*.py")}
    assert records <= scripts
    assert scripts, "the book has no recorded run at all"
