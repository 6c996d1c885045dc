import pytest
import torch

from training.ada import AdaController
from training.augment import AugmentPipe
from training.settings.augpipes import AUGPIPES, GROUPS, augment_kwargs


def scores(positive, negative):
    return torch.cat([torch.full([positive, 1], 0.3), torch.full([negative, 1], -7.0)])


@pytest.mark.parametrize(
    ("positive", "negative", "direction"),
    [(9, 1, 1), (5, 5, -1), (0, 10, -1), (8, 2, 0)],  # r_t = 0.8, 0, -1, 0.6 against 0.6
)
def test_p_moves_by_a_fixed_step_towards_the_target(positive, negative, direction):
    p = torch.tensor(0.5)
    controller = AdaController(p, target=0.6, kimg=500)
    controller.observe(scores(positive, 0))
    controller.observe(scores(0, negative))
    controller.update(nimg=256)
    assert p.item() == pytest.approx(0.5 + direction * 256 / 500_000)


def test_p_never_falls_below_zero_and_may_pass_one():
    for start, positive, expected in ((0.0, 0, 0.0), (1.0, 4, 1.5)):
        p = torch.tensor(start)
        controller = AdaController(p, target=0.6, kimg=1)
        controller.observe(scores(positive, 4 - positive))
        controller.update(nimg=500)
        assert p.item() == expected


def test_each_update_forgets_what_it_has_seen():
    p = torch.tensor(0.5)
    controller = AdaController(p, target=0.6, kimg=1)
    controller.observe(scores(10, 0))
    controller.update(nimg=100)
    controller.update(nimg=100)  # nothing observed: p stays
    assert p.item() == pytest.approx(0.6)
    controller.observe(scores(0, 1))
    controller.update(nimg=100)
    assert p.item() == pytest.approx(0.5)


def test_pipelines_name_augmentations_that_exist():
    for name in AUGPIPES:
        AugmentPipe(**augment_kwargs(name))
    assert AUGPIPES["bgcfnc"] == tuple(a for group in GROUPS.values() for a in group)
    assert augment_kwargs("bg").keys() == {*GROUPS["blit"], *GROUPS["geom"]}
