"""Every recorded run of the book has a record, made by the code as it is now."""

import hashlib

import pytest

from lab import checkpoints, runs


@pytest.mark.parametrize("name", runs.names())
def test_no_record_is_stale(name):
    changed = runs.changed(name)
    assert not changed, f"{', '.join(changed)} changed since: python -m lab.runs {name}"


def test_no_record_without_its_script():
    records = {file.with_suffix("") for file in runs.ROOT.glob("book/*/runs/*.json")}
    scripts = {file.with_suffix("") for file in runs.ROOT.glob("book/*/runs/*.py")}
    assert records <= scripts
    assert scripts, "the book has no recorded run at all"


@pytest.mark.parametrize("name", checkpoints.names())
def test_a_checkpoint_is_the_one_that_its_run_recorded(name):
    command = checkpoints.load(name).facts["command"]
    record = runs.load(command.removeprefix("python -m lab.runs "))
    digest = hashlib.sha256((checkpoints.FOLDER / f"{name}.safetensors").read_bytes()).hexdigest()
    stored = [result.get("checkpoints", {}) for result in record.results]
    recorded = [files[name]["sha256"] for files in stored if name in files]
    assert digest in recorded, f"lab/weights/{name}.safetensors is of another run: {command}"
