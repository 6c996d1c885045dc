import pytest

from tests import tiny
from training.settings.run_name import describe_run
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS


def describe(**options):
    return describe_run("faces", tiny.config(**options), options)


def test_only_what_was_given_is_named():
    assert describe_run("faces", tiny.config(), {}) == "faces-digits"
    assert describe(cfg="auto") == "faces-auto1"


def test_order_of_all_parts():
    options = dict(
        coop_kimg=3,
        freezed=2,
        resume="ffhq256",
        batch=16,
        kimg=9,
        gamma=0.5,
        mirror=True,
        subset=7,
        cond=True,
        cfg="cifar",
        aug="ada",
        target=0.7,
        augpipe="bg",
        loss="ns",
        lr=0.01,
        d_scale=0.25,
        lazy=False,
        sn=True,
        brc_lookahead=2,
    )
    assert describe_run("faces", tiny.config(**options), options) == (
        "faces-cond-subset7-mirror-cifar-gamma0.5-kimg9-batch16-ada-target0.7-bg-"
        "resumeffhq256-freezed2-coop3-ns-lr0.01-dscale0.25-nolazy-sn-brclookahead2"
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(gamma=0.0), "gamma0"),
        (dict(gamma=10.0), "gamma10"),
        (dict(freezed=0), "freezed0"),
        (dict(resume="some/ffhq256.pkl"), "resumecustom"),
        (dict(coop_kimg=0), ""),
        (dict(aug="fixed", p=0.25), "fixed-p0.25"),
        (dict(cond=False, mirror=False), ""),
    ],
)
def test_parts(options, part):
    assert describe(**options) == "-".join(filter(None, ["faces-digits", part]))


@pytest.mark.parametrize("name", OFFICIAL_SNAPSHOTS)
def test_official_snapshots_keep_their_names(name):
    assert describe(resume=name) == f"faces-digits-resume{name}"
    assert OFFICIAL_SNAPSHOTS[name].startswith("https://")
