"""How two guarantees of several networks differ: network by network, hashes by their first digits."""

import pytest

from idrc_jax.results import guarantee_differences
from idrc_jax.results.manifest import flags, networks

A, B, C = (letter * 64 for letter in "abc")


def by_level(*hashes):
    return {"scheme": "cascade", "by_level": [{"weights_sha256": one} for one in hashes], "weights_sha256": hashes[-1]}


@pytest.mark.parametrize(
    ("stored", "asked", "told"),
    [
        (by_level(A, B), by_level(A, B), ""),
        (by_level(A, B), by_level(A, C), "network 2's weights_sha256 was bbbbbbbb..., is cccccccc..."),
        (by_level(A, B), by_level(C, B), "network 1's weights_sha256 was aaaaaaaa..., is cccccccc..."),
        (
            by_level(A, B),
            by_level(A, B, C),
            "by_level was 2 networks, is 3 networks; weights_sha256 was bbbbbbbb..., is cccccccc...",
        ),
        (by_level(A, B), {"scheme": "cascade", "weights_sha256": B}, "by_level was 2 networks, is unset"),
        # A classifier of its own where there is no noise, as Python can make it.
        (by_level(A, B), by_level(A, B) | {"weights_sha256": A}, "weights_sha256 was bbbbbbbb..., is aaaaaaaa..."),
        (
            {"router": {"weights_sha256": A, "answers": 2}},
            {"router": {"weights_sha256": B, "answers": 2}},
            "router's weights_sha256 was aaaaaaaa..., is bbbbbbbb...",
        ),
        ({"router": {"weights_sha256": A}}, {}, "router was {'weights_sha256': 'aaaaaaaa...'}, is unset"),
        (
            {"members": [{"weights_sha256": A}, {"weights_sha256": B}]},
            {"members": [{"weights_sha256": A}, {"weights_sha256": C}]},
            "member 2's weights_sha256 was bbbbbbbb..., is cccccccc...",
        ),
        (
            {"by_level": [{"weights_sha256": A, "members": [{"weights_sha256": B}]}]},
            {"by_level": [{"weights_sha256": A, "members": [{"weights_sha256": C}]}]},
            "network 1's members was [{'weights_sha256': 'bbbbbbbb...'}], is [{'weights_sha256': 'cccccccc...'}]",
        ),
        ({"members": 3}, {"members": 4}, "members was 3, is 4"),  # a field of a scheme of the user's own
        ({"members": []}, {}, "members was [], is unset"),
    ],
)
def test_networks_are_told_one_by_one(stored, asked, told):
    assert guarantee_differences(stored, asked) == told
    assert bool(guarantee_differences(asked, stored)) == bool(told)


def test_flags_are_told_where_networks_differ_alone():
    assert guarantee_differences(by_level(A), by_level(B), "--x=y").endswith("; the run was made with --x=y")
    assert guarantee_differences({"n": 1}, {"n": 2}, "--x=y") == "n was 1, is 2"


def test_the_last_call_that_named_a_file_names_it():
    sessions = [{"weights": "a"}, {"weights": "b c", "router": "r"}, {"weights": "", "by_level": ""}]
    named = networks({"schema_version": 1, "guarantee": {}, "sessions": sessions})
    assert named == {"model.weights": "b c", "router.weights": "r"}
    assert flags(named) == "'--config.model.weights=b c' --config.router.weights=r"
