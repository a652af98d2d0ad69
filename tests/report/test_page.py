import base64
import html.parser
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import running
from conftest import ROOT
from pages import HOSTILE, charts, write_audit, write_run
from PIL import Image

from idrc_jax import report
from idrc_jax.commands import report as command
from idrc_jax.results import audit_rows, metrics, runs


class Page(html.parser.HTMLParser):
    """Text, tags and scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.charts = charts(text)
        self.tags, self.texts, self.scripts, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def page_of(*arguments, **more):
    return Page(report.render(runs.read([str(one) for one in arguments]), **more))


def found(node, name):
    """The values of this name anywhere in JSON."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [one for key, value in inner for one in ([value] if key == name else found(value, name))]


def test_the_page_says_what_the_rows_say(tmp_path):
    folder = write_audit(write_run(tmp_path / "a", gallery=True))
    page = page_of(folder, f"other={write_run(tmp_path / 'b', seed=1)}")
    read = runs.read([str(folder)])[0].results
    text = page.text
    for radius in (0.25, 0.5):
        for published in (False, True):
            assert f"{metrics.certified_accuracy(read, radius, published=published):.3f}" in text
    assert f"{int(1000 * metrics.average_certified_radius(read)) / 1000:.3f}" in text
    for said in (
        "l1, σ = 0.25", "other", "made/test", "Most robust", "Abstained", "samples drawn 66,000", "1" * 64,
        "idrc-certify --config=cifar10.py", "jax", "0.10.2", "valid 1 0 1.800", "published 1 1 0.750",
        "not broken 0.750", "1 → 2",
    ):  # fmt: skip
        assert said in text, said
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert {image["title"] for image in images} == {"clean", "noisy", "denoised", "original", "adversarial"}


def test_a_plan_that_stops_at_its_radii_is_said():
    told = "The plan asked for radii up to 1.5: the ACR, and accuracy at others (0, too), are too low to compare."
    stopped, fixed = (runs.read([str(ROOT / "results/plans" / plan)]) for plan in ("to_radius", "fixed"))
    assert told in report.render(stopped)
    assert "too low to compare" not in report.render(fixed)


def test_abstentions_of_a_plan_for_correct_predictions_alone_are_no_measure():
    trained = ROOT / "results/cifar10_resnet20_0.5"
    both = runs.read([f"first={trained / 'consistency'}", f"alone={trained / 'ensemble'}"])
    told = "so abstentions say little, of “alone”."
    assert told in report.render(both)
    assert "abstentions say little" not in report.render(both[:1])


def test_a_run_made_in_python_has_no_pictures(tmp_path):
    text = page_of(write_run(tmp_path / "a", data="arrays/memory")).text
    assert "No pictures: a run made in Python has none." in text
    assert "idrc-gallery" not in text
    assert "idrc-gallery" in page_of(write_run(tmp_path / "b")).text


def test_boxes_are_there_for_several_runs_and_few_are_ticked(tmp_path):
    folder = write_run(tmp_path / "a")
    for count, ticked in ((1, 0), (2, 2), (7, 5)):
        page = page_of(*(f"run {number}={folder}" for number in range(count)))
        boxes = [attributes for tag, attributes in page.tags if "data-run" in attributes]
        assert len(boxes) == (count if count > 1 else 0)
        assert sum("checked" in box for box in boxes) == ticked
        assert (f"{min(count, 5)} of {count} shown" in page.text) == (count > 1)
        assert ("Show all" in page.text) == (count > 5)


def test_an_audit_that_is_not_finished_says_so(tmp_path):
    text = page_of(write_audit(write_run(tmp_path / "a"), finished=False)).text
    assert "(this audit is not finished)" in text
    assert "published 1 1 0.750" in text
    assert "not broken" not in text


def test_an_audit_of_other_certificates_is_not_shown_as_that_of_these(tmp_path):
    folder = write_audit(write_run(tmp_path / "a"))
    other = write_run(tmp_path / "b", sigma=0.5)
    for path in folder.glob("audit.*"):
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"got one of others in .*audit.tsv, of which sigma was 0\.25, is 0\.5"):
        page_of(other)


def test_claims_of_an_audit_are_one_only_where_they_say_the_same():
    made = {"scheme": "gaussian", "certificate": "one_sided"}
    same = [{"kind": kind, "images": 3, "broken": 1} for kind in ("radius", "radius_published")]
    assert audit_rows.distinct(same, made) == [{"kind": "valid = published", "images": 3, "broken": 1}]
    other = [same[0], same[1] | {"broken": 2}]
    assert audit_rows.distinct(other, made) == other
    assert audit_rows.distinct(same, made | {"scheme": "l1"}) == same
    none = [same[0], same[1] | {"images": 0}]  # published
    assert audit_rows.distinct(none, made | {"scheme": "cascade"}) == same[:1]


def test_radii_that_are_the_same_by_definition_are_shown_once(tmp_path):
    same = write_audit(write_run(tmp_path / "same", gallery=True, published=1, scheme="gaussian"), same=True)
    page = page_of(same)
    assert "published" not in page.text.partition("To the content")[2]
    assert not [attributes for _, attributes in page.tags if attributes.get("name") == "kinds"]
    kinds = [tags[1] for tags in found(page.charts, "tags")]
    assert set(kinds) == {"same"}
    assert "valid = published" not in json.dumps(found(page.charts, "tooltips"))
    other = page_of(write_run(tmp_path / "other", published=1, scheme="gaussian", certificate="two_sided"))
    assert "valid = published" not in other.text
    assert "published (no certificate)" in other.text


def test_beside_other_radii_the_same_ones_are_said_to_be(tmp_path):
    same = write_audit(write_run(tmp_path / "same", gallery=True, published=1, scheme="gaussian"), same=True)
    page = page_of(same, write_run(tmp_path / "other"))
    assert page.text.count("valid = published") == 4  # the row of accuracies, two columns of classes, the audit
    acr = f"{int(1000 * metrics.average_certified_radius(runs.read([str(same)])[0].results)) / 1000:.3f}"
    assert f"{acr} {acr}" in page.text  # the overview's columns compare runs
    assert [attributes["value"] for _, attributes in page.tags if attributes.get("name") == "kinds"] == [
        "valid", "published", "both",
    ]  # fmt: skip
    assert "valid = published" in json.dumps(found(page.charts, "tooltips"))


def test_radii_that_no_run_could_certify_have_no_column(tmp_path):
    same = write_run(tmp_path / "same", published=1, scheme="gaussian")
    other = write_run(tmp_path / "other")
    kept = metrics.within_reach([runs.read([str(same)])[0].results], metrics.RADII)
    assert 1 < len(kept) < len(metrics.RADII)
    text = page_of(same).text
    left_out = ", ".join(map(str, metrics.RADII[len(kept) :]))
    assert f"interval; {left_out} are left out, which no run here could certify" in text
    assert f"all votes agreed run {' '.join(map(str, kept))} " in text
    text = page_of(same, other).text
    assert "left out" not in text
    assert f"run radii {' '.join(map(str, metrics.RADII))} " in text


def test_the_page_asks_nothing_of_the_network(tmp_path):
    page = page_of(write_run(tmp_path / "a", gallery=True))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset"):
            assert not re.match(r"(https?:)?//", attributes.get(name, "")), attributes
    (policy,) = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy


def test_what_comes_from_files_stays_text(tmp_path):
    folder = write_run(tmp_path / "run", gallery=True, data=HOSTILE, dtype=HOSTILE)
    page = page_of(f"{HOSTILE.replace('=', '-')}={folder}", names=[HOSTILE] * 4, notes=[HOSTILE])
    assert page.text.count(HOSTILE) >= 5
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [(one.get("type"), one.get("id")) for one in scripts[:2]] == [
        ("application/gzip", "library"),
        ("application/gzip", "data"),
    ]
    plain = page_of(folder)
    assert len(scripts) == sum(tag == "script" for tag, _ in plain.tags)
    assert not any(attributes.get("src") == "x" for _, attributes in page.tags)
    assert HOSTILE in json.dumps(page.charts, ensure_ascii=False).replace('\\"', '"')


def test_others_logs_have_a_page(tmp_path):
    (tmp_path / "sigma_0.25").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t0:00:03\n20\t1\t-1\t0.0\t0\t0:00:03.5"
    )
    text = page_of(tmp_path / "sigma_0.25").text
    assert "sigma_0.25" in text
    assert "0.500" in text
    assert "Another project's file: it has no settings." in text


def test_all_abstained_and_no_certificates_are_said(tmp_path):
    page = page_of(write_run(tmp_path / "a", abstain=True))
    assert "Every image abstained: nothing is certified." in page.text
    nan = write_run(tmp_path / "b")
    text = (nan / "certificates.tsv").read_text().splitlines()
    lines = [line.split("\t") for line in text[1:]]
    (nan / "certificates.tsv").write_text(
        "\n".join([text[0], *("\t".join([*one[:3], "nan", *one[4:]]) for one in lines), ""])
    )
    page = page_of(nan)
    assert "published (no certificate)" in page.text


def test_mixed_images_are_said(tmp_path):
    a, b, c = (write_run(tmp_path / name, count=count) for name, count in (("a", 60), ("b", 60), ("c", 30)))
    assert "Compare with care" not in page_of(a, b).text
    text = page_of(f"A={a}", f"B={b}", f"C={c}").text
    assert "not of the same images as “A” are “C” (60 images against 30, 30 of them in both)." in text
    d = write_run(tmp_path / "d", data="other/test", data_sha256="1" * 64)
    assert "made/test (00000000) against other/test (11111111)" in page_of(a, d).text


def test_the_command_writes_one_file_and_loads_no_jax(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "certificates.tsv").open("a") as file:
        file.write("60\t1\t1\t0.")  # cut in mid-row
    code = "import sys; from idrc_jax.commands import report\n"
    code += "try:\n    report.main()\nfinally:\n    print('jax' in sys.modules)"
    command = [sys.executable, "-c", code, str(folder), "--out", str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.splitlines()[-1] == "False"
    assert "warning: The last line" in answer.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    text = (tmp_path / "out/index.html").read_text()
    assert "cut off by a crash and is left out" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", "", "Expected a header"),
        ("header", "idx\tlabel\tpredict\tradius\tcorrect\ttime\n", "at least one row"),
        ("columns", "idx\tlabel\tradius\n0\t1\t0.5\n", "Expected a header"),
        ("cut", "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1\n20\t1\t1", "line 3: got 3 columns"),
        ("binary", "\udcff\udcfe", "text file"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    assert message in running.refused(command.main, tmp_path / name, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gallery.npz", "audit.npz", "audit.tsv", "manifest.json"])
def test_damage_beside_the_rows_is_named(tmp_path, name):
    folder = write_audit(write_run(tmp_path / "run", gallery=True))
    content = (folder / name).read_bytes()
    if name == "manifest.json":
        manifest = json.loads(content)
        del manifest["guarantee"]["n0"]
        (folder / name).write_text(json.dumps(manifest))
    else:
        (folder / name).write_bytes(content[: len(content) // 2 - 3].replace(b"idx\t", b"x\t"))
    error = running.refused(command.main, folder, "--out", tmp_path / "out")
    assert name in error


def test_ten_thousand_rows_make_a_small_page(tmp_path):
    text = report.render(runs.read([str(write_run(tmp_path, count=10_000))]))
    assert len(text) < 1e6


def test_pixels_become_pngs():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    six = np.concatenate([pixels, 255 - pixels], axis=-1)
    for given, expected in (
        (pixels, pixels),
        (pixels[..., :1], pixels[..., 0]),
        (pixels / 255, pixels),
        (pixels[..., :2], pixels[..., 0]),
        (six[..., :4], pixels),
        (six, pixels),
    ):
        packed = base64.b64decode(report.data_uri(given).removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(packed))), expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_images_of_any_number_of_channels_are_shown(tmp_path, channels):
    page = page_of(write_run(tmp_path / "a", gallery=True, channels=channels))
    assert sum(tag == "img" for tag, _ in page.tags) > 10


def test_the_page_tells_how_sure_the_votes_are(tmp_path):
    folder = write_run(tmp_path / "a")
    rows = (folder / "certificates.tsv").read_text().splitlines()
    (tmp_path / "log.tsv").write_text("".join("\t".join(row.split("\t")[:6]) + "\n" for row in rows))
    page = page_of(folder, tmp_path / "log.tsv")
    read = runs.read([str(folder)])[0].results
    share = float((metrics.right_probabilities(read) >= 0.5).mean())
    assert f"p ≥ 0.75 p ≥ 0.9 p ≥ 0.99 p ≥ 0.999 ACR of it from p ≥ 0.99 l1, σ = 0.25 {share:.3f}" in page.text
    assert "Another project's file: it has no p_lower." in page.text
    assert "probabilities" in page.charts
    alone = page_of(tmp_path / "log.tsv")
    assert "probabilities" not in alone.charts
