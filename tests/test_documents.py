"""What the documentation says to paste is run."""

import math
import os
import re
import shlex
import subprocess
import sys

import pytest
import running
from conftest import ROOT
from scipy.special import ndtri

from idrc_jax import results
from idrc_jax.certificates.confidence_bounds import clopper_pearson_lower
from idrc_jax.commands import compare, recertify, report, tables


def run(*command, cwd):
    clean = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=clean | {"PYTHONPATH": str(ROOT)}
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_the_example_of_an_own_function(tmp_path):
    pytest.importorskip("sklearn")
    out = run(sys.executable, str(ROOT / "examples/own_function.py"), cwd=tmp_path)
    right = int(re.search(r"predicted 40: (\d+) right", out)[1])
    certified, within = map(float, re.findall(r"([.\d]+) right", out)[-2:])
    assert right > 25
    assert 0.6 < certified <= 1
    assert 0 < within <= certified
    assert re.search(r"a \d: \d within 0\.\d+", out)


def test_the_page_about_python(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    page = (ROOT / "docs/how_to/python.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        exec(code, names)
    assert 0 < names["accuracy"] <= 1
    assert (tmp_path / "accuracy.png").is_file()
    assert len(names["by_index"]) == 40
    (commands,) = re.findall(r"```bash\n(.*?)```", page, flags=re.S)
    mains = {"idrc-report": report.main, "idrc-recertify": recertify.main}
    for line in commands.splitlines():
        name, *arguments = shlex.split(line)
        assert running.run(mains[name], *arguments)[0] == 0
    assert (tmp_path / "report/index.html").is_file()


def test_the_tables_of_the_documents_are_those_of_make_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = ("README.md", "docs/paper.md", "docs/reference/results.md", "docs/how_to/denoising.md")
    pages = {name: tmp_path / name.replace("/", "_") for name in names}
    for name, copy in pages.items():
        copy.write_text(re.sub(r"^\|.*\n", "", (ROOT / name).read_text(), flags=re.M))
    lines = run("make", "-n", "figures", cwd=ROOT).replace("\\\n", "").splitlines()
    for line in lines:
        if "/idrc-recertify " in line:
            running.run(recertify.main, *shlex.split(line.replace("build/certificates", str(tmp_path)))[1:])
    lines = [line.replace("build/certificates", str(tmp_path)) for line in lines]
    made = [shlex.split(line)[1:] for line in lines if "/idrc-tables " in line]
    for arguments in made:
        running.run(tables.main, *(pages.get(word, word) for word in arguments))
    for arguments in made:
        name, mark = (arguments[arguments.index(flag) + 1] for flag in ("--out", "--mark"))
        texts = (pages[name].read_text(), (ROOT / name).read_text())
        (own, theirs) = (re.search(rf"<!-- {mark} -->.*<!-- /{mark} -->", text, re.S)[0] for text in texts)
        assert own == theirs
        assert own.count("|") > 15
    assert len(made) == 10


def test_the_comparison_in_the_documentation(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/how_to/report.md").read_text()
    (line, said) = re.search(r"^\$ idrc-compare (.*)\n((?:.+\n)+?)```", text, re.M).groups()
    assert running.run(compare.main, *line.split())[1] == said


def test_the_table_at_the_end_in_the_documentation():
    read = results.read_results(ROOT / "results/cifar10_resnet20_0.25/gaussian")
    assert f"```\n{results.summary_table(read)}\n```" in (ROOT / "docs/tutorials/quickstart.md").read_text()


def test_the_largest_radii_in_the_documentation():
    """Those of unanimous votes, rounded down; and what typical votes give, to the two places shown."""
    page = (ROOT / "docs" / "how_to" / "how_many_samples.md").read_text()
    sizes = (1_000, 10_000, 100_000)
    rows = re.findall(r"^\| ([.\d]+) \| ([.\d]+) \| ([.\d]+) \| ([.\d]+) \|$", page, flags=re.M)
    assert len(rows) == 4
    for sigma, *shown in rows:
        radii = [float(sigma) * ndtri(0.001 ** (1 / n)) for n in sizes]
        assert [float(one) for one in shown] == [math.floor(radius * 1_000) / 1_000 for radius in radii]
    rows = re.findall(r"^\| ([.\d]+) \| ([.\d]+) σ \| ([.\d]+) σ \| ([.\d]+) σ \| ([.\d]+) σ \|$", page, flags=re.M)
    assert len(rows) == 4
    for p, *shown in rows:
        radii = [ndtri(clopper_pearson_lower(round(float(p) * n), n, 0.001)) for n in sizes]
        assert shown == [f"{radius:.2f}" for radius in (*radii, ndtri(float(p)))]


def test_the_committed_report_is_small():
    assert (ROOT / "docs/report/index.html").stat().st_size <= 4_000_000
    assert (ROOT / "docs/images/report.png").stat().st_size <= 400_000


@pytest.mark.peers
@pytest.mark.shared
def test_the_import_in_the_documentation(shared, tmp_path):
    pytest.importorskip("torch")
    page = (ROOT / "docs/how_to/importing.md").read_text()
    (commands,) = re.findall(r"```bash\n(idrc-import resnet20-12fca82f.th.*?)```", page, flags=re.S)
    (tmp_path / "resnet20-12fca82f.th").symlink_to(shared / "weights/resnet20-12fca82f.th")
    run(sys.executable, str(shared / "cifar10/unpack.py"), str(tmp_path / "FOLDER"), cwd=tmp_path)
    places = {"idrc-import": "from idrc_jax.commands import import_network as m; m.main()"}
    places["idrc-certify"] = "from idrc_jax.commands import certify as m; m.main()"
    said = []
    for line in commands.replace("\\\n", " ").splitlines():
        name, *arguments = shlex.split(line, comments=True)
        more = ["--dry_run"] if name == "idrc-certify" else []
        said.append(run(sys.executable, "-c", places[name], *arguments, *more, cwd=tmp_path))
    assert "Imported cifar_resnet20: 10 classes" in said[0]
    assert "Dry run: 20 images" in said[1]
