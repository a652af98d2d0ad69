"""The files in examples/clusters, and the fields that the documentation names, against the project as it is."""

import re
import shlex
import subprocess

import pytest
import running
import yaml
from conftest import ROOT

from idrc_jax import config
from idrc_jax.commands import certify, train

FOLDER = ROOT / "examples" / "clusters"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))


def script_command(path):
    """The words of the script's last command, from the program's name on."""
    *_, last = path.read_text().replace("\\\n", " ").strip().splitlines()
    words = shlex.split(last)
    return words[next(at for at, word in enumerate(words) if word in ("train.py", "certify.py")) :]


def containers(path):
    (job,) = yaml.safe_load_all(path.read_text())
    return job["spec"], job["spec"]["template"]["spec"]["containers"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_ask_slurm_first(path):
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    last_option = max(at for at, line in enumerate(lines) if line.startswith("#SBATCH "))
    assert all(line.startswith("#") for line in lines[: last_option + 1])  # Slurm reads options up to the first command


def test_the_three_ways_are_there():
    assert [path.name for path in (*SCRIPTS, *MANIFESTS)] == [
        "certify_array.sbatch", "certify_rest.sbatch", "train.sbatch", "certify_job.yaml",
    ]  # fmt: skip
    array = (FOLDER / "certify_array.sbatch").read_text()
    assert script_command(FOLDER / "certify_rest.sbatch") == script_command(FOLDER / "certify_array.sbatch")
    assert re.search(r"^#SBATCH --array=\d+-\d+$", array, re.MULTILINE)
    docs = (ROOT / "docs/how_to/clusters.md").read_text()
    assert all(f"examples/clusters/{path.name}" in docs for path in (*SCRIPTS, *MANIFESTS))


def test_the_kubernetes_job_is_indexed_and_counts_its_pods():
    (path,) = MANIFESTS
    spec, (container,) = containers(path)
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", spec["parallelism"])
    assert f"--config.workers.count={spec['completions']}" in container["command"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_their_commands_parse(path):
    """Fields and values, by the command itself with --help added."""
    command = script_command(path) if path in SCRIPTS else containers(path)[1][0]["command"]
    name = command[0].removeprefix("idrc-").removesuffix(".py")
    main = {"train": train.main, "certify": certify.main}[name]
    status, out, error = running.run(main, *command[1:], "--help")
    assert status == 0, error
    assert "noise.sigma = 0.25" in out


@pytest.mark.parametrize("path", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]), ids=lambda path: path.name)
def test_config_fields_in_the_documentation_exist(path):
    known = set(config.FIELDS) | set(config.base())
    named = set(re.findall(r"--config\.([a-z_]\w*(?:\.\w+)*)", path.read_text()))
    assert named <= known, named - known
