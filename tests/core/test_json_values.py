import json

import pytest

from idrc_jax.core import files, json_values

KIND = {
    "name": str, "n": int, "share": float, "yes": bool, "more?": {"a": float}, "radii?": [float], "shape?": (int, int),
}  # fmt: skip
GOOD = {"name": "x", "n": 3, "share": 0.5, "yes": True}


@pytest.mark.parametrize("more", [{}, {"more": {"a": 1}}, {"radii": []}, {"radii": [1, 0.5]}, {"shape": [3, -3]}])
def test_values_of_their_kinds_pass(more):
    json_values.require(GOOD | more, KIND, "", "x.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": 3}, r"Expected name in x\.json to be a text, got 3\."),
        ({"n": 3.0}, r"Expected n in x\.json to be an integer of 64 bits, got 3\.0\."),
        ({"n": True}, "an integer of 64 bits, got true"),
        ({"n": 2**63}, "an integer of 64 bits, got 9223372036854775808"),
        ({"share": float("nan")}, "a finite number, got NaN"),
        ({"share": float("-inf")}, "a finite number, got -Infinity"),
        ({"share": 10**400}, r"a finite number, got 10{59}\.\.\.\.$"),
        ({"share": False}, "a finite number, got false"),
        ({"yes": 1}, "true or false, got 1"),
        ({"more": {}}, r"Expected more\.a in x\.json, got none\."),
        ({"more": []}, "more in .* an object, got"),
        ({"radii": [1, "2"]}, r"Expected radii\.1 in x\.json to be a finite number"),
        ({"radii": {"0": 1}}, "a list, got"),
        ({"shape": [3]}, r"Expected 2 values at shape in x\.json, got 1\."),
    ],
)
def test_another_kind_is_named_with_its_place(more, message):
    with pytest.raises(ValueError, match=message):
        json_values.require(GOOD | more, KIND, "", "x.json")


@pytest.mark.parametrize("value", [[], None, "x", 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match=r"Expected all in x\.json to be an object"):
        json_values.require(value, KIND, "", "x.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "'a' twice in one object"),
        ('{"c": [{"a": 1, "a": 1}]}', "'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', "digits"),
        ('{"a": 1', "Expecting"),
    ],
)
def test_a_damaged_text_is_one_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        json_values.parsed(text)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"Expected a readable .*x\.json, got: "):
        files.read_json(path)
    with pytest.raises(ValueError, match=r"Expected a thing, got .*x\.json, which is damaged"):
        files.read_manifest(path, 1, "a thing")
    path.write_text(json.dumps(GOOD))
    assert files.read_json(path) == GOOD
