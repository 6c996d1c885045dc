import re

import pytest
import torch

from tests import tiny
from tests.train_cli import FEW_CHANNELS, SMALL, invoke, ticks, trained, without_curves
from training.monitor.diagnostics import SYMPTOMS, Diagnostics, SymptomError, relative_diversity
from training.monitor.verdict import Action, Verdict
from training.settings.common import SYMPTOMS as NAMES


def entry(mean, std=0.0):
    return {"num": 100, "mean": mean, "std": std}


HEALTHY = {
    "Loss/scores/real": entry(1.0, 1.0),
    "Loss/scores/fake": entry(-1.0, 1.0),
    "Progress/diversity": entry(0.8),
    "Progress/augment": entry(0.7),
    "Loss/nonfinite/Gmain": entry(0.0),
    "Loss/nonfinite/Dmain": entry(0.005),
}
SICK = {
    "d-saturated": ({"Loss/scores/fake": entry(-3.0, 1.0)}, r"ranks 99\.8% of the pairs"),
    "no-diversity": ({"Progress/diversity": entry(0.05)}, r"differ 0\.05 times as much"),
    "ada-ceiling": ({"Progress/augment": entry(0.85)}, r"risen to 0\.85"),
    "non-finite": ({"Loss/nonfinite/Gmain": entry(0.25)}, r"not finite in 25% of Gmain steps"),
}


def test_the_names_on_the_command_line_are_those_that_exist():
    assert tuple(SYMPTOMS) == NAMES
    assert SICK.keys() == SYMPTOMS.keys(), "each has a case here"


def test_a_healthy_run_is_told_nothing():
    assert Diagnostics(NAMES).check(HEALTHY, adaptive=True) == Verdict()


@pytest.mark.parametrize("name", SICK)
def test_each_symptom_is_warned_of_once_with_advice(name):
    changes, text = SICK[name]
    diagnostics = Diagnostics()
    verdicts = [diagnostics.check(HEALTHY | changes, adaptive=True) for _ in range(3)]
    assert verdicts[0].action is Action.WARN and verdicts[1:] == [Verdict()] * 2
    [message] = verdicts[0].warnings
    assert diagnostics.warnings == [message]
    assert message.startswith(f"Warning ({name}): ")
    assert message.endswith(f"{SYMPTOMS[name].advice}.") and "--" in SYMPTOMS[name].advice
    verdict = Diagnostics((name,)).check(HEALTHY | changes, adaptive=True)
    assert verdict.action is Action.STOP and re.search(text, str(verdict.error))
    assert isinstance(verdict.error, SymptomError) and verdict.error.exit_status == 3


def test_the_run_stops_on_what_it_was_asked_to_alone():
    diagnostics = Diagnostics(("no-diversity",))
    assert diagnostics.check(HEALTHY | SICK["d-saturated"][0]).action is Action.WARN
    verdict = diagnostics.check(HEALTHY | SICK["no-diversity"][0])
    assert verdict.action is Action.STOP
    assert "(--stop-on=no-diversity). It will hardly recover" in str(verdict.error)


@pytest.mark.parametrize("level", [-50.0, 50.0])
def test_saturation_is_about_the_order_of_scores_and_not_their_level(level):
    """WGAN and energies leave the level free; a high one alone is no symptom."""
    shifted = {
        f"Loss/scores/{kind}": entry(HEALTHY[f"Loss/scores/{kind}"]["mean"] + level, 1.0)
        for kind in ("real", "fake")
    }
    assert Diagnostics(NAMES).check(HEALTHY | shifted, adaptive=True) == Verdict()


def test_a_fixed_probability_is_the_users_choice():
    fixed = HEALTHY | {"Progress/augment": entry(0.9)}
    assert Diagnostics(NAMES).check(fixed, adaptive=False) == Verdict()


def test_losses_that_report_no_scores_are_fine():
    stats = {name: value for name, value in HEALTHY.items() if "scores" not in name}
    assert Diagnostics(NAMES).check(stats, adaptive=True) == Verdict()


def test_relative_diversity():
    reals = torch.randint(0, 256, [50, 3, 8, 8], dtype=torch.uint8)
    same = reals.float() / 127.5 - 1
    assert relative_diversity(same, reals).item() == pytest.approx(1)
    assert relative_diversity(0.5 * same, reals).item() == pytest.approx(0.5)
    assert relative_diversity(same[:1].repeat(50, 1, 1, 1), reals) < 1e-6
    assert relative_diversity(same, reals.numpy()).item() == pytest.approx(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip")


@pytest.mark.slow
@without_curves
def test_a_run_reports_what_the_symptoms_look_at(data, tmp_path):
    run_dir, _ = trained(
        f"--data={data}", f"--outdir={tmp_path}", "--batch=100", "--gamma=0.1", *FEW_CHANNELS
    )
    for tick in ticks(run_dir):
        assert tick["Progress/diversity"]["mean"] > 0.5
        assert tick["Loss/nonfinite/Gmain"]["mean"] == 0


def test_a_stopped_run_ends_with_its_own_status_and_a_snapshot(data, tmp_path, monkeypatch):
    """G that makes one image whatever its latents, from the start."""
    from training.networks import MappingNetwork

    forward = MappingNetwork.forward
    monkeypatch.setattr(
        MappingNetwork, "forward", lambda self, z, c, **kw: forward(self, z * 0 + 1, c, **kw)
    )
    result = invoke(
        *SMALL, f"--data={data}", f"--outdir={tmp_path}", "--stop-on=ada-ceiling, no-diversity"
    )
    assert result.exit_code == 3, result.output
    assert result.output.splitlines()[-1].startswith("Error: G has collapsed: its images differ")
    [run_dir] = tmp_path.iterdir()
    assert (run_dir / "network-snapshot-000000.pkl").exists()
    page = (run_dir / "index.html").read_text()
    assert '<p class="note">Stopped: G has collapsed' in page and "(after 0.0 kimg)" in page
    assert "SymptomError: G has collapsed" in (run_dir / "log.txt").read_text()


def test_unknown_symptoms_are_refused(data):
    result = invoke(f"--data={data}", "--stop-on=boredom", "-n")
    assert result.exit_code == 2
    assert "--stop-on knows d-saturated, no-diversity, ada-ceiling, non-finite" in result.output
