"""Augmentation pipes for the tests."""

from training.augment import AugmentPipe


def make_pipe(p=1.0, **kwargs):
    pipe = AugmentPipe(**kwargs)
    # The controller of p sets it in place, too.
    pipe.p.fill_(p)
    return pipe
