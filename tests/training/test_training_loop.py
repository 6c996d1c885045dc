import copy
import dataclasses

import pytest
import torch

from tests import tiny
from training.dataset import ImageFolderDataset
from training.ema import ema_decay, update_ema
from training.training_loop import iterate
from training.training_run import TrainingRun


def make_run(folder, **options):
    data = tiny.write_data(folder / "tiny.zip", count=16)
    config = tiny.config(data=data, workers=0, gamma=0.0, coop_kimg=1, kimg=2, **options)
    (folder / "training_options.json").write_text(config.to_json())
    return TrainingRun(config, ImageFolderDataset(data), folder)


def rates(run):
    return [run.model.optimizers[name].param_groups[0]["lr"] for name in "GD"]


def test_the_stage_follows_the_images_seen_and_sets_the_learning_rates(tmp_path):
    run = make_run(tmp_path, coop_lr_g=0.01, coop_lr_d=0.02, lr=0.003)
    cooperative, adversarial = run.model.stages
    for nimg, stage, lr_g, lr_d in (
        (0, cooperative, 0.01, 0.02),
        (999, cooperative, 0.01, 0.02),
        (1000, adversarial, 0.003, 0.003),
    ):
        run.state.progress.nimg = nimg
        run.enter_stage()
        assert run.stage is stage and not run.stage_is_over()
        assert rates(run) == pytest.approx([lr_g * 4 / 5, lr_d * 16 / 17])
    run.state.progress.nimg = 2000
    assert run.done and run.stage_is_over()


def test_networks_and_moments_go_on_through_the_switch(tmp_path):
    run = make_run(tmp_path)
    with run.reporter, run.data:
        run.enter_stage()
        iterate(run)
        D, D_opt = run.model.nets["D"], run.model.optimizers["D"]
        weights = copy.deepcopy(D.state_dict())
        moments = [copy.deepcopy(s) for s in D_opt.state.values()]
        run.state.progress.nimg = 1000
        run.enter_stage()
        assert run.stage is run.model.stages.adversarial
        assert all(torch.equal(w, D.state_dict()[name]) for name, w in weights.items())
        for before, after in zip(moments, D_opt.state.values(), strict=True):
            assert torch.equal(before["exp_avg_sq"], after["exp_avg_sq"])
        iterate(run)
        assert all(s["step"] == 2 for s in D_opt.state.values())


@pytest.mark.parametrize("rampup", [0.05, 1.0])
def test_an_iteration_moves_the_average_by_its_decay(tmp_path, rampup):
    run = make_run(tmp_path, ema_kimg=0.02, ema_rampup=rampup)
    batch = run.config.batch
    with run.reporter, run.data:
        run.enter_stage()
        nets = run.model.nets
        for nimg in (0, batch):
            expected = copy.deepcopy(nets["G_ema"])
            iterate(run)
            update_ema(expected, nets["G"], ema_decay(batch, nimg, 0.02, rampup))
            for a, b in zip(expected.parameters(), nets["G_ema"].parameters(), strict=True):
                assert torch.equal(a, b)


def test_learning_rates_follow_the_schedule_of_the_stage(tmp_path):
    run = make_run(tmp_path, lr=0.001)
    stage = dataclasses.replace(run.model.stages.adversarial, schedule=lambda nimg: 1 - nimg / 4000)
    run.model.stages = run.model.stages._replace(adversarial=stage)
    for nimg, factor in ((1000, 0.75), (2000, 0.5)):
        run.state.progress.nimg = nimg
        run.enter_stage()
        assert rates(run) == pytest.approx([0.001 * 4 / 5 * factor, 0.001 * 16 / 17 * factor])
