"""Every loss, regulariser and architecture trains through both stages from the command line."""

import itertools

import pytest

from models.stylegan2.settings import LOSSES
from tests import tiny
from tests.speed import slow_except
from tests.train_cli import FEW_CHANNELS, snapshot, ticks, trained, without_curves

pytestmark = without_curves

# Enough iterations for every lazy regulariser to come up.
TINY = ("--batch=100", *FEW_CHANNELS, "--gamma=0")
STAGES = ("--kimg=2", "--coop-kimg=1", "--coop-steps=1", *TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


def through_both_stages(data, outdir, *options):
    """Train; returns (run folder, statistics of the last tick)."""
    run_dir, _ = trained(f"--data={data}", f"--outdir={outdir}", *STAGES, *options)
    seen = ticks(run_dir)
    assert [tick["Progress/cooperative"]["mean"] for tick in seen] == [1, 1, 0]
    final = snapshot(run_dir / "network-snapshot-000002.pkl")
    for name in ("G", "D", "G_ema"):
        assert all(tensor.isfinite().all() for tensor in final[name].state_dict().values())
    return run_dir, seen[-1]


# Options, and the statistics that only they bring.
REGULARISERS = {
    "lazy R1 and path length": (
        ["--gamma=1", "--pl-weight=2", "--style-mixing=0.9"],
        {"Timing/Greg", "Timing/Dreg", "Loss/pl_penalty", "Loss/r1_penalty"},
    ),
    "not lazy": (
        ["--gamma=1", "--pl-weight=2", "--lazy=0"],
        {"Timing/Gboth", "Timing/Dboth", "Loss/pl_penalty", "Loss/r1_penalty"},
    ),
    "spectral norm": (["--sn=1", "--gamma=1"], {"Timing/Dreg", "Loss/r1_penalty"}),
    "bfloat16": (["--precision=bf16", "--gamma=1"], {"Timing/Dreg", "Loss/r1_penalty"}),
    "zCR": (["--zcr=1", "--zcr-noise=0.2"], {"Loss/zcr/G", "Loss/zcr/D"}),
    "look-ahead only": (["--brc-lookahead=2"], set()),
    "Freeze-D": (["--freezed=2", "--gamma=1"], {"Timing/Dreg", "Loss/r1_penalty"}),
    "energy L2": (["--coop-energy-l2=0.1"], set()),
    "nothing": (["--gamma=0"], set()),
}
ONLY_THERE = set().union(*(stats for _, stats in REGULARISERS.values())) | {"Loss/brc_weight"}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_except(["lazy R1 and path length"], REGULARISERS))
def test_regularisers(data, tmp_path, name):
    options, expected = REGULARISERS[name]
    _, last = through_both_stages(data, tmp_path, *options)
    assert ONLY_THERE & last.keys() == expected


@pytest.mark.parametrize(
    ("loss", "brc"), slow_except([("wgan-gp", 1)], list(itertools.product(LOSSES, [0, 1])))
)
def test_losses_with_and_without_brc(data, tmp_path, loss, brc):
    lookahead = ["--brc-lookahead=1"] if brc else []
    run_dir, last = through_both_stages(
        data, tmp_path, f"--loss={loss}", f"--brc={brc}", *lookahead
    )
    named = "-brc-brclookahead1" if brc else "-nobrc"
    assert f"-coop1-{loss}-" in run_dir.name and f"{named}-coopsteps1" in run_dir.name
    assert ("Loss/gradient_penalty" in last) == (loss == "wgan-gp")
    assert ("Loss/brc_weight" in last) == bool(brc)
    assert last["Progress/augment"]["mean"] == 0, "ADA is off with these settings"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("g_arch", "d_arch"), [("orig", "skip"), ("skip", "resnet"), ("resnet", "orig")]
)
def test_architectures_and_capacity(data, tmp_path, g_arch, d_arch):
    run_dir, _ = through_both_stages(
        data,
        tmp_path,
        f"--g-arch={g_arch}",
        f"--d-arch={d_arch}",
        "--g-scale=0.00390625",
        "--d-scale=0.0078125",
        "--mapping-layers=3",
        "--gamma=1",
        "--pl-weight=2",
    )
    final = snapshot(run_dir / "network-snapshot-000002.pkl")
    G, D = final["G"], final["D"]
    assert (G.synthesis.b8.architecture, D.b8.architecture) == (g_arch, d_arch)
    assert G.synthesis.b8.conv1.weight.shape[0] == 64 // 8
    assert D.b8.conv0.weight.shape[0] == 128 // 8
    assert G.mapping.num_layers == 3


def test_learning_rates_of_each_network(data, tmp_path):
    """A rate next to nothing leaves a network where it was."""
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        "--kimg=1",
        *TINY,
        "--lr=0.01",
        "--lr-d=1e-30",
        "--snap=1",
    )
    first, last = (snapshot(run_dir / f"network-snapshot-00000{i}.pkl") for i in (0, 1))
    moved = {
        name: any(
            (a - b).abs().max() > 1e-20
            for a, b in zip(first[name].parameters(), last[name].parameters(), strict=True)
        )
        for name in ("G", "D")
    }
    assert moved == {"G": True, "D": False}
